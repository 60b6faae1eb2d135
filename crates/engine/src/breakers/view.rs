//! Circuit breakers as users read them.

use pensum_core::Time;
use pensum_core::breaker::{BreakerRecord, BreakerState, Tripped};
use pensum_core::input::BreakerInput;
use serde::Serialize;

/// A circuit breaker as it is shown.
#[derive(Clone, Debug, Serialize, utoipa::ToSchema)]
pub struct BreakerView {
    /// Its id.
    pub id: String,
    /// Whether what it covers starts.
    pub state: BreakerState,
    /// Why it does not, or not all of it; null while it is closed.
    pub because: Option<String>,
    /// When it opened; null while it is closed.
    #[schema(value_type = Option<String>)]
    pub opened_at: Option<Time>,
    /// When it lets somebody try; null unless it is open.
    #[schema(value_type = Option<String>)]
    pub tries_at: Option<Time>,
    /// How many try now, of a half-open one.
    pub probing: u64,
    /// How many that tried have succeeded, of a half-open one.
    pub succeeded: u32,
    /// How many ends have failed within the window, of a closed one.
    pub failures: u64,
    /// How many ends there were within the window, of a closed one.
    pub calls: u64,
    /// Its settings, as `PUT` takes them.
    pub settings: BreakerInput,
    /// Who gave it its settings.
    pub put_by: String,
    /// When it was made.
    #[schema(value_type = String)]
    pub created_at: Time,
    /// When it was changed last, or opened or closed.
    #[schema(value_type = String)]
    pub changed_at: Time,
    /// Grows with each change of the settings, and whenever it opens or closes.
    pub version: u64,
}

impl BreakerView {
    pub(super) fn of(record: BreakerRecord, now: Time) -> BreakerView {
        let state = record.state(now);
        let because = match (record.room(record.probing, now), state) {
            (Err(tripped), _) => Some(in_words(&record, tripped)),
            (Ok(_), BreakerState::HalfOpen) => Some(format!(
                "it is half-open: {} of {} that try have succeeded",
                record.memory.succeeded, record.settings.probes
            )),
            (Ok(_), _) => None,
        };
        let (calls, failures) = record.counted(now);
        BreakerView {
            id: record.name.to_string(),
            because,
            opened_at: record.memory.opened_at,
            tries_at: record.half_open_at().filter(|_| state == BreakerState::Open),
            probing: record.probing,
            succeeded: record.memory.succeeded,
            failures,
            calls,
            settings: record.settings.into(),
            put_by: record.put_by.to_string(),
            created_at: record.created_at,
            changed_at: record.changed_at,
            version: record.version,
            state,
        }
    }
}

/// Why nothing that a breaker covers starts now.
pub(super) fn in_words(record: &BreakerRecord, tripped: Tripped) -> String {
    let name = &record.name;
    match tripped {
        Tripped::Open { since, until } => format!(
            "the circuit breaker `{name}` is open since {since} and lets somebody try at {until}; run `pensum breaker reset \
             {name}` to close it now"
        ),
        Tripped::Probing { probing, .. } => format!(
            "the circuit breaker `{name}` is half-open: {probing} of {} try, and their ends decide",
            record.settings.probes
        ),
    }
}

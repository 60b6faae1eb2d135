//! Circuit breakers: the verbs.

mod gates;
mod view;

use pensum_core::Name;
use pensum_core::breaker::{BreakerCommand, BreakerRecord};
use pensum_core::input::BreakerInput;
use pensum_core::store::{Call, Rejected};

pub(crate) use gates::OpenBreakers;
pub use view::BreakerView;

use crate::{Engine, EngineError};

impl Engine {
    /// Makes a circuit breaker, or gives it other settings. With `expected_version` only when it is at that version; 0 is
    /// one that is not there.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for wrong settings, and for a name that no breaker can have (at the path `id`);
    /// [`EngineError::Rejected`] when it is at another version, or there are too many breakers.
    pub async fn put_breaker(
        &self,
        call: &Call,
        breaker: &str,
        settings: BreakerInput,
        expected_version: Option<u64>,
    ) -> Result<BreakerView, EngineError> {
        let settings = settings.resolve(breaker)?;
        let put = self
            .store()
            .put_breaker(call, Name::from(breaker), settings, expected_version);
        self.breaker_changed(put.await?)
    }

    /// Opens or closes a circuit breaker.
    ///
    /// # Errors
    /// [`EngineError::Rejected`] when there is none of that name.
    pub async fn command_breaker(
        &self,
        call: &Call,
        breaker: &str,
        command: BreakerCommand,
    ) -> Result<BreakerView, EngineError> {
        let commanded = self.store().command_breaker(call, Name::from(breaker), command);
        self.breaker_changed(commanded.await?)
    }

    /// Removes a circuit breaker; what it held up starts.
    ///
    /// # Errors
    /// [`EngineError::Rejected`] when there is none of that name.
    pub async fn delete_breaker(&self, call: &Call, breaker: &str) -> Result<(), EngineError> {
        self.store().delete_breaker(call, Name::from(breaker)).await?;
        self.wake_claims();
        Ok(())
    }

    /// The circuit breakers, by name.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn list_breakers(&self, namespace: &str) -> Result<Vec<BreakerView>, EngineError> {
        let now = self.now();
        let found = self.store().breakers(namespace).await?;
        Ok(found.into_iter().map(|record| BreakerView::of(record, now)).collect())
    }

    /// One circuit breaker.
    ///
    /// # Errors
    /// [`EngineError::Rejected`] when there is none of that name.
    pub async fn breaker(&self, namespace: &str, breaker: &str) -> Result<BreakerView, EngineError> {
        let views = self.list_breakers(namespace).await?;
        let found = views.into_iter().find(|view| view.id == breaker);
        found.ok_or_else(|| EngineError::Rejected(Rejected::NoBreaker(Name::from(breaker))))
    }

    fn breaker_changed(&self, record: BreakerRecord) -> Result<BreakerView, EngineError> {
        self.wake_claims();
        Ok(BreakerView::of(record, self.now()))
    }
}

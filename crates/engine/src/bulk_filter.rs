//! Which tasks a bulk operation means: the filter of lists, and the fingerprint of an error beside it.

use std::fmt;

use pensum_core::input::Invalid;
use pensum_core::store::StoreError;
use pensum_core::{Fingerprint, Page, TaskFilter, TaskRecord, Time};
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeSeed, Error, IntoDeserializer, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::Engine;
use crate::bulk::BulkAction;

/// The field that stores do not know.
const FIELD: &str = "fingerprint";

/// Which tasks: every given field must match. Empty matches all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, utoipa::ToSchema)]
pub struct BulkFilter {
    /// The fields that stores know.
    #[serde(flatten)]
    pub tasks: TaskFilter,
    /// Failed with an error of this fingerprint; only beside `dead_lettered: true`, to retry or delete.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub fingerprint: Option<Fingerprint>,
}

impl From<TaskFilter> for BulkFilter {
    fn from(tasks: TaskFilter) -> BulkFilter {
        BulkFilter {
            tasks,
            fingerprint: None,
        }
    }
}

/// What one look into the store gave.
pub(crate) struct Looked {
    /// The tasks that match.
    pub(crate) items: Vec<TaskRecord>,
    /// How many tasks were looked at for them.
    pub(crate) examined: usize,
    /// Where the next look starts; `None` at the end.
    pub(crate) next: Option<i64>,
}

impl BulkFilter {
    /// What is wrong with it for an action.
    pub(crate) fn check(&self, action: BulkAction) -> Result<(), Invalid> {
        const PATH: &str = "filter.fingerprint";
        if self.fingerprint.is_none() {
            return Ok(());
        }
        if self.tasks.dead_lettered != Some(true) {
            let message = "is for dead letters; say `dead_lettered: true` beside it";
            return Err(Invalid::one(PATH, message));
        }
        if !matches!(action, BulkAction::Retry | BulkAction::Delete) {
            let message = format!(
                "is for retry and delete; dead letters have ended, so none can {}",
                action.as_str()
            );
            return Err(Invalid::one(PATH, message));
        }
        Ok(())
    }

    /// One page of the store, without what has another fingerprint.
    pub(crate) async fn look(
        &self,
        engine: &Engine,
        namespace: &str,
        page: Page,
        now: Time,
    ) -> Result<Looked, StoreError> {
        let found = engine.store().tasks(namespace, self.tasks.clone(), page, now).await?;
        let examined = found.items.len();
        let mut items = found.items;
        if let Some(wanted) = self.fingerprint {
            items.retain(|record| Fingerprint::of(&record.spec.handler, record.error.as_ref()) == wanted);
        }
        Ok(Looked {
            items,
            examined,
            next: found.next,
        })
    }
}

impl<'de> Deserialize<'de> for BulkFilter {
    /// Serde can either flatten a struct or refuse unknown fields, so the one field is taken out on the way.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<BulkFilter, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = BulkFilter;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<BulkFilter, A::Error> {
                let mut fingerprint = None;
                let others = Others {
                    map,
                    fingerprint: &mut fingerprint,
                };
                let tasks = TaskFilter::deserialize(MapAccessDeserializer::new(others))?;
                Ok(BulkFilter { tasks, fingerprint })
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// The fields but for the fingerprint.
struct Others<'a, A> {
    map: A,
    fingerprint: &'a mut Option<Fingerprint>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Others<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, mut seed: K) -> Result<Option<K::Value>, A::Error> {
        loop {
            seed = match self.map.next_key_seed(OtherKey(seed))? {
                None => return Ok(None),
                Some(Key::Other(key)) => return Ok(Some(key)),
                Some(Key::Fingerprint(_)) if self.fingerprint.is_some() => {
                    return Err(A::Error::duplicate_field(FIELD));
                }
                Some(Key::Fingerprint(seed)) => seed,
            };
            *self.fingerprint = self.map.next_value()?;
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

/// Reads a key within the map's own reading, so that a field that nobody knows is named by its path.
struct OtherKey<K>(K);

/// What a key turned out to be; the seed is given back where it was not used.
enum Key<K, V> {
    Fingerprint(K),
    Other(V),
}

impl<'de, K: DeserializeSeed<'de>> DeserializeSeed<'de> for OtherKey<K> {
    type Value = Key<K, K::Value>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        let key = String::deserialize(deserializer)?;
        if key == FIELD {
            return Ok(Key::Fingerprint(self.0));
        }
        self.0.deserialize(key.into_deserializer()).map(Key::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<BulkFilter, Invalid> {
        pensum_core::input::parse_object(text.as_bytes())
    }

    #[test]
    fn a_fingerprint_stands_among_the_fields_of_the_filter() {
        let text = r#"{"status":["failed"],"queue":"mail","dead_lettered":true,"fingerprint":"00c0ffee0017"}"#;
        let filter = read(text).unwrap();
        assert_eq!(
            filter.fingerprint.map(|f| f.to_string()).as_deref(),
            Some("00c0ffee0017")
        );
        assert_eq!(
            (filter.tasks.queue.as_deref(), filter.tasks.dead_lettered),
            (Some("mail"), Some(true))
        );
        assert_eq!(serde_json::to_string(&filter).unwrap(), text);
        assert_eq!(read("{}").unwrap(), BulkFilter::default());
        assert_eq!(read(r#"{"fingerprint":null}"#).unwrap(), BulkFilter::default());
    }

    #[test]
    fn whatever_is_wrong_is_named_by_its_path() {
        for (text, path, part) in [
            (r#"{"fingerprint":"x"}"#, "fingerprint", "12 digits"),
            (r#"{"fingerprint":7}"#, "fingerprint", "expected a string"),
            (
                r#"{"fingerprint":"00c0ffee0017","fingerprint":"00c0ffee0017"}"#,
                "fingerprint",
                "duplicate",
            ),
            (r#"{"colour":1}"#, "colour", "unknown field"),
            (r#"{"status":["failed","gone"]}"#, "status[1]", "gone"),
            (r#"{"queue":"a","queue":"b"}"#, "queue", "duplicate"),
            ("[]", "", "an object"),
        ] {
            let Invalid(problems) = read(text).unwrap_err();
            assert_eq!(
                (problems.len(), problems[0].path.as_str()),
                (1, path),
                "{text}: {problems:?}"
            );
            assert!(problems[0].message.contains(part), "{text}: {problems:?}");
        }
    }
}

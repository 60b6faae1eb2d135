//! Dead letters by what went wrong: lists and groups by the fingerprint of the error.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use foldhash::HashMap;
use pensum_core::query::{PAGE_MAX, Paged};
use pensum_core::{ErrorInfo, Fingerprint, Name, Page, TaskFilter, TaskId, TaskRecord, Time};
use serde::Serialize;

use crate::bulk_filter::BulkFilter;
use crate::{Engine, EngineError};

/// How many dead letters are looked at for groups, the newest ones.
pub const GROUPED_MAX: usize = 10_000;
/// How many ids a group names.
pub const GROUP_NEWEST_MAX: usize = 5;
/// How many queues a group names.
pub const GROUP_QUEUES_MAX: usize = 20;
/// How many pages of the store are read for groups; pages are short where other filters match rarely.
const GROUP_PAGES_MAX: usize = 2 * GROUPED_MAX / PAGE_MAX;
/// How many pages of the store are read for one page of a list by fingerprint.
const LIST_PAGES_MAX: usize = 10;

/// Dead letters with the same handler and, but for numbers and ids, the same error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct DeadLetterGroup {
    /// The name of the group, for filters: 12 hexadecimal digits.
    #[schema(value_type = String)]
    pub fingerprint: Fingerprint,
    /// The handler.
    #[schema(value_type = String)]
    pub handler: Name,
    /// The queues of the tasks by name, the first 20.
    #[schema(value_type = Vec<String>)]
    pub queues: Vec<Name>,
    /// The error of the newest task.
    pub error: Option<ErrorInfo>,
    /// How many tasks.
    pub count: usize,
    /// When the first of them became a dead letter.
    #[schema(value_type = String)]
    pub first_at: Time,
    /// When the last of them did.
    #[schema(value_type = String)]
    pub last_at: Time,
    /// The tasks that became dead letters last, at most five, the newest first.
    #[schema(value_type = Vec<String>)]
    pub newest: Vec<TaskId>,
}

/// Dead letters in groups.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct DeadLetterGroups {
    /// The groups, those with most tasks first, then those with the newest.
    pub items: Vec<DeadLetterGroup>,
    /// How many groups there are.
    pub total: usize,
    /// How many dead letters were looked at: the newest, at most 10,000.
    pub examined: usize,
    /// Whether these are all that match.
    pub complete: bool,
}

impl Engine {
    /// One page of the dead letters that match, newest first; those whose error has this fingerprint. A page that looked
    /// at its bound of tasks may be short before the end.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn dead_letters(
        &self,
        namespace: &str,
        filter: TaskFilter,
        fingerprint: Option<Fingerprint>,
        page: Page,
    ) -> Result<Paged<TaskRecord>, EngineError> {
        let filter = dead(filter, fingerprint);
        let now = self.now();
        if fingerprint.is_none() {
            return Ok(self.store().tasks(namespace, filter.tasks, page, now).await?);
        }
        let mut items = Vec::new();
        let mut next = page.before_row;
        for _ in 0..LIST_PAGES_MAX {
            let looked = filter.look(self, namespace, whole(next), now).await?;
            next = looked.next;
            let room = page.limit - items.len();
            let more = looked.items.len() > room;
            items.extend(looked.items.into_iter().take(room));
            if more {
                next = items.last().map(|record: &TaskRecord| record.id.row());
            }
            if next.is_none() || items.len() == page.limit {
                break;
            }
        }
        Ok(Paged { items, next })
    }

    /// The dead letters that match, the newest 10,000 of them, in groups by the fingerprint of their errors; at most
    /// `limit` groups.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn dead_letter_groups(
        &self,
        namespace: &str,
        filter: TaskFilter,
        fingerprint: Option<Fingerprint>,
        limit: usize,
    ) -> Result<DeadLetterGroups, EngineError> {
        let filter = dead(filter, fingerprint);
        let now = self.now();
        let mut groups = Groups::default();
        let mut next = None;
        for _ in 0..GROUP_PAGES_MAX {
            let looked = filter.look(self, namespace, whole(next), now).await?;
            next = looked.next;
            groups.examined += looked.examined;
            looked.items.into_iter().for_each(|record| groups.add(record));
            if next.is_none() || groups.examined >= GROUPED_MAX {
                break;
            }
        }
        Ok(groups.finish(limit, next.is_none()))
    }
}

fn dead(filter: TaskFilter, fingerprint: Option<Fingerprint>) -> BulkFilter {
    BulkFilter {
        tasks: TaskFilter {
            dead_lettered: Some(true),
            ..filter
        },
        fingerprint,
    }
}

const fn whole(before_row: Option<i64>) -> Page {
    Page {
        limit: PAGE_MAX,
        before_row,
    }
}

/// Groups that are being made.
#[derive(Default)]
struct Groups {
    by_fingerprint: HashMap<Fingerprint, Group>,
    examined: usize,
}

struct Group {
    handler: Name,
    queues: BTreeSet<Name>,
    /// That of the first of `newest`.
    error: Option<ErrorInfo>,
    count: usize,
    first_at: Time,
    /// The newest first.
    newest: Vec<(Time, TaskId)>,
}

impl Groups {
    fn add(&mut self, record: TaskRecord) {
        let at = record.lifecycle.dead_lettered_at.unwrap_or(record.created_at);
        let fingerprint = Fingerprint::of(&record.spec.handler, record.error.as_ref());
        let group = self.by_fingerprint.entry(fingerprint).or_insert_with(|| Group {
            handler: record.spec.handler.clone(),
            queues: BTreeSet::new(),
            error: None,
            count: 0,
            first_at: at,
            newest: Vec::with_capacity(GROUP_NEWEST_MAX + 1),
        });
        group.count += 1;
        group.first_at = group.first_at.min(at);
        group.queues.insert(record.spec.queue);
        if group.queues.len() > GROUP_QUEUES_MAX {
            group.queues.pop_last();
        }
        let place = group.newest.partition_point(|(other, _)| *other >= at);
        group.newest.insert(place, (at, record.id));
        group.newest.truncate(GROUP_NEWEST_MAX);
        if place == 0 {
            group.error = record.error;
        }
    }

    fn finish(self, limit: usize, complete: bool) -> DeadLetterGroups {
        let mut items: Vec<DeadLetterGroup> = self
            .by_fingerprint
            .into_iter()
            .map(|(fingerprint, group)| DeadLetterGroup {
                fingerprint,
                handler: group.handler,
                queues: group.queues.into_iter().collect(),
                error: group.error,
                count: group.count,
                first_at: group.first_at,
                last_at: group.newest.first().map_or(group.first_at, |(at, _)| *at),
                newest: group.newest.into_iter().map(|(_, id)| id).collect(),
            })
            .collect();
        items.sort_unstable_by_key(|group| (Reverse(group.count), Reverse(group.last_at), group.fingerprint));
        let total = items.len();
        items.truncate(limit);
        DeadLetterGroups {
            items,
            total,
            examined: self.examined,
            complete,
        }
    }
}

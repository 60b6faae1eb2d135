//! Bulk operations: one durable task that walks over the tasks that a filter matches, newest first, page by page.

use std::time::Duration;

use async_trait::async_trait;
use pensum_core::input::Invalid;
use pensum_core::query::PAGE_MAX;
use pensum_core::store::{Call, Command};
use pensum_core::{ErrorInfo, Json, Name, NewTask, Outcome, Page, Priority, Rejected, Spec, TaskId};
use serde::{Deserialize, Serialize};

use crate::bulk_filter::BulkFilter;
use crate::{Context, Engine, EngineError, Handler, kinds};

/// The handler that carries bulk operations out, and the queue of its tasks: what people limit or pause holds no command up.
pub(crate) const HANDLER: &str = "pensum.bulk";
/// How many pages one run of it takes before it saves where it is.
const PAGES_PER_RUN: usize = 10;
/// How many refusals the result names.
const REFUSALS_MAX: usize = 20;
/// How many tasks a submission looks at to count before it goes ahead; a dry run counts all.
const COUNT_MAX: u64 = 10_000;

/// What to do to each task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names are those of the commands")]
pub enum BulkAction {
    Cancel,
    Retry,
    Delete,
    Pause,
    Resume,
}

impl BulkAction {
    /// The name in lower case.
    pub const fn as_str(self) -> &'static str {
        match self {
            BulkAction::Cancel => "cancel",
            BulkAction::Retry => "retry",
            BulkAction::Delete => "delete",
            BulkAction::Pause => "pause",
            BulkAction::Resume => "resume",
        }
    }

    fn command(self) -> Command {
        match self {
            BulkAction::Cancel => Command::Cancel { reason: None },
            BulkAction::Retry => Command::Retry,
            BulkAction::Delete => Command::Delete,
            BulkAction::Pause => Command::Pause,
            BulkAction::Resume => Command::Resume,
        }
    }
}

/// A bulk operation to carry out.
#[derive(Clone, Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct BulkRequest {
    /// What to do.
    pub action: BulkAction,
    /// To which tasks. An empty filter is refused unless `all` is true.
    #[serde(default, deserialize_with = "pensum_core::input::object")]
    pub filter: BulkFilter,
    /// Really all tasks.
    #[serde(default)]
    pub all: bool,
    /// Only count.
    #[serde(default)]
    pub dry_run: bool,
}

/// What came of a bulk operation's submission.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, utoipa::ToSchema)]
pub struct BulkReceipt {
    /// The task that carries it out, whose progress and result tell how it went; `None` for a dry run.
    #[schema(value_type = Option<String>)]
    pub task: Option<TaskId>,
    /// How many tasks the filter matches now.
    pub matched: u64,
    /// Whether `matched` is all of them; a submission that goes ahead stops counting at 10,000.
    pub exact: bool,
}

/// The parameters of the task.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Parameters {
    action: BulkAction,
    filter: BulkFilter,
    actor: String,
}

/// Where it is.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Cursor {
    before_row: Option<i64>,
    matched: u64,
    done: u64,
    unchanged: u64,
    refused: u64,
    refusals: Vec<String>,
}

pub(crate) async fn submit(engine: &Engine, call: &Call, request: BulkRequest) -> Result<BulkReceipt, EngineError> {
    request.filter.check(request.action)?;
    if request.filter == BulkFilter::default() && !request.all {
        return Err(Invalid::one("filter", "is empty, which means every task; say so with `all: true`").into());
    }
    if request.all && request.filter != BulkFilter::default() {
        return Err(Invalid::one("all", "cannot stand beside a filter; leave one of them out").into());
    }
    let most = if request.dry_run { u64::MAX } else { COUNT_MAX };
    let (matched, exact) = count(engine, call, &request.filter, most).await?;
    if request.dry_run {
        return Ok(BulkReceipt {
            task: None,
            matched,
            exact,
        });
    }
    let parameters = Parameters {
        action: request.action,
        filter: request.filter,
        actor: call.actor.to_string(),
    };
    let parameters =
        Json::of(&parameters).map_err(|e| Invalid::one("filter", format!("cannot be written as JSON: {e}")))?;
    let mut spec = Spec {
        queue: Name::from(HANDLER),
        priority: Priority::High,
        timeout: Some(Duration::ZERO),
        ..Spec::new(HANDLER, parameters)
    };
    let details = spec.details_mut();
    details.name = Some(format!("Bulk {}", request.action.as_str()));
    details.created_by = Some(call.actor.to_string());
    let enqueued = engine.enqueue_unchecked(call, vec![NewTask::new(spec)]).await?;
    Ok(BulkReceipt {
        task: enqueued.first().map(|e| e.id),
        matched,
        exact,
    })
}

async fn count(engine: &Engine, call: &Call, filter: &BulkFilter, most: u64) -> Result<(u64, bool), EngineError> {
    let mut page = Page {
        limit: PAGE_MAX,
        before_row: None,
    };
    let mut matched = 0;
    let mut examined = 0;
    loop {
        let found = filter.look(engine, &call.namespace, page.clone(), call.now).await?;
        matched += found.items.len() as u64;
        examined += found.examined as u64;
        match found.next {
            None => return Ok((matched, true)),
            Some(_) if examined >= most => return Ok((matched, false)),
            next => page.before_row = next,
        }
    }
}

/// Carries bulk operations out. Its own row bounds it: what was enqueued later is left alone.
pub(crate) struct Bulk;

#[async_trait]
impl Handler for Bulk {
    async fn run(&self, ctx: Context) -> Outcome {
        let parameters: Parameters = match ctx.parameters() {
            Ok(parameters) => parameters,
            Err(error) => return Outcome::Fail(error),
        };
        let own_row = ctx.id().row();
        let start = Cursor {
            before_row: Some(own_row),
            ..Cursor::default()
        };
        let mut cursor = ctx.checkpoint().and_then(|c| c.to::<Cursor>().ok()).unwrap_or(start);
        for _ in 0..PAGES_PER_RUN {
            if ctx.cancellation().is_cancelled() {
                return Outcome::Cancelled;
            }
            match page(&ctx, &parameters, &mut cursor).await {
                Ok(true) => {
                    ctx.progress(
                        100.0,
                        format!("{} of {} matching tasks done", cursor.done, cursor.matched),
                    );
                    return done(&parameters, &cursor);
                }
                Ok(false) => {}
                Err(error) => {
                    return Outcome::Retry {
                        error: ErrorInfo::new(kinds::FAILED, error.to_string()),
                        after: None,
                    };
                }
            }
            let left = cursor.before_row.unwrap_or(0) as f64 / own_row.max(1) as f64;
            ctx.progress(
                100.0 * (1.0 - left),
                format!("{} of {} matching tasks done", cursor.done, cursor.matched),
            );
        }
        match Json::of(&cursor) {
            Ok(checkpoint) => Outcome::Again {
                after: Duration::ZERO,
                checkpoint: Some(checkpoint),
            },
            Err(error) => Outcome::Fail(ErrorInfo::new(kinds::BAD_CHECKPOINT, error.to_string())),
        }
    }

    fn can_pause(&self) -> bool {
        false
    }
}

/// Takes one page; true at the end.
async fn page(ctx: &Context, parameters: &Parameters, cursor: &mut Cursor) -> Result<bool, EngineError> {
    let engine = ctx.engine();
    let now = ctx.now();
    let page = Page {
        limit: PAGE_MAX,
        before_row: cursor.before_row,
    };
    let found = parameters.filter.look(engine, ctx.namespace(), page, now).await?;
    let ids: Vec<TaskId> = found.items.iter().map(|record| record.id).collect();
    if !ids.is_empty() {
        let actor = Name::from(parameters.actor.as_str());
        let call = Call {
            namespace: ctx.namespace().clone(),
            ..Call::new(actor, now)
        };
        let answers = engine.command(&call, ids, parameters.action.command()).await?;
        for answer in answers {
            cursor.matched += 1;
            match answer {
                Ok(_) => cursor.done += 1,
                Err(Rejected::Nothing(_) | Rejected::NotFound(_)) => cursor.unchanged += 1,
                Err(rejected) => {
                    cursor.refused += 1;
                    if cursor.refusals.len() < REFUSALS_MAX {
                        cursor.refusals.push(rejected.to_string());
                    }
                }
            }
        }
    }
    cursor.before_row = found.next;
    Ok(found.next.is_none())
}

fn done(parameters: &Parameters, cursor: &Cursor) -> Outcome {
    Outcome::Done(Json::from(serde_json::json!({
        "action": parameters.action,
        "matched": cursor.matched,
        "done": cursor.done,
        "unchanged": cursor.unchanged,
        "refused": cursor.refused,
        "refusals": cursor.refusals,
    })))
}

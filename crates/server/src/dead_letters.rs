//! `/dead-letters`: failed tasks, listed and in groups by what went wrong.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use pensum_core::Fingerprint;
use pensum_core::query::{Page, TaskFilter};
use pensum_core::view::TaskView;
use pensum_engine::DeadLetterGroups;

use crate::app::{App, Listing, json};
use crate::cursor::{self, List};
use crate::extract::{NAMESPACE, Params};
use crate::problem::{Kind, Problem, ProblemDetails};
use crate::tasks::filter;

/// Lists the failed tasks of the dead-letter queue, newest first.
#[utoipa::path(get, path = "/api/v1/dead-letters", operation_id = "list_dead_letters", tag = "queues", params(TaskFilter,
        ("fingerprint" = Option<String>, Query, description = "Whose error has this fingerprint: 12 hexadecimal digits"),
        ("limit" = Option<usize>, Query, description = "How many items, 1 to 200; 50 by default"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before")),
    responses(
        (status = 200, description = "One page; `next_cursor` is null at the end. A page may be short before the end where matches are rare", body = Listing<TaskView>),
        (status = 400, description = "An unknown or wrong parameter, or an altered cursor", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn list(State(app): State<App>, mut params: Params) -> Result<Response, Problem> {
    let (filter, fingerprint) = which(&mut params)?;
    let limit = params.limit()?;
    let before_row = params
        .text("cursor")?
        .map(|text| cursor::decode(List::Tasks, &text))
        .transpose()?;
    params.finish()?;
    let page = Page { limit, before_row };
    let found = app.engine.dead_letters(NAMESPACE, filter, fingerprint, page).await?;
    let now = app.engine.now();
    let listing = Listing {
        items: found
            .items
            .into_iter()
            .map(|record| TaskView::of(record, now))
            .collect(),
        next_cursor: found.next.map(|row| cursor::encode(List::Tasks, row)),
    };
    Ok(json(StatusCode::OK, &listing))
}

/// Groups the failed tasks of the dead-letter queue by handler and error, where numbers and ids in the first line of the
/// message make no difference. The newest 10,000 that match are looked at.
#[utoipa::path(get, path = "/api/v1/dead-letters/groups", operation_id = "group_dead_letters", tag = "queues", params(TaskFilter,
        ("fingerprint" = Option<String>, Query, description = "Only the group of this fingerprint: 12 hexadecimal digits"),
        ("limit" = Option<usize>, Query, description = "How many groups, 1 to 200; 50 by default")),
    responses(
        (status = 200, description = "The groups, those with most tasks first", body = DeadLetterGroups),
        (status = 400, description = "An unknown or wrong parameter", body = ProblemDetails, content_type = "application/problem+json"),
    ))]
pub(crate) async fn groups(State(app): State<App>, mut params: Params) -> Result<Response, Problem> {
    let (filter, fingerprint) = which(&mut params)?;
    let limit = params.limit()?;
    params.finish()?;
    let groups = app
        .engine
        .dead_letter_groups(NAMESPACE, filter, fingerprint, limit)
        .await?;
    Ok(json(StatusCode::OK, &groups))
}

fn which(params: &mut Params) -> Result<(TaskFilter, Option<Fingerprint>), Problem> {
    let filter = filter(params)?;
    if params.flag("dead_lettered")? == Some(false) {
        let message = "must be true or absent here: every task of this list is dead-lettered";
        return Err(Problem::at(Kind::BadRequest, "dead_lettered", message));
    }
    Ok((filter, params.read("fingerprint")?))
}

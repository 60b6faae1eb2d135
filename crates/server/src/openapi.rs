//! Every route, once: the router and its description come from the same list, so neither can miss what the other has.

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use utoipa::OpenApi;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::{ContentBuilder, Ref, ResponseBuilder};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::{agents, batch, breakers, bulk, commands, dead_letters, executions, intake, logs, queues, system, tasks};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Pensum",
        description = "Durable background jobs, queues, workflows and schedules. Times are RFC 3339 in UTC; durations \
                       are seconds in answers, and seconds or text such as \"1h 30m\" in requests. Errors are RFC 9457 \
                       problem details. Every POST takes an `Idempotency-Key`; every changing request takes a W3C \
                       `traceparent`.",
        license(name = "MIT OR Apache-2.0")
    ),
    components(schemas(crate::problem::ProblemDetails)),
    tags(
        (name = "tasks", description = "Create, find, read, change and delete tasks"),
        (name = "commands", description = "What people ask of tasks"),
        (name = "executions", description = "Attempts of tasks"),
        (name = "queues", description = "Queues and the dead-letter queue"),
        (name = "agents", description = "Programs outside the nodes that ask for tasks and bring results"),
        (name = "breakers", description = "Circuit breakers: what fails again and again is left alone for a while"),
        (name = "intake", description = "What other programs left in the store within transactions of their own"),
        (name = "system", description = "The server itself"),
    )
)]
struct Description;

/// The routes with their descriptions.
pub(crate) fn routes() -> OpenApiRouter<App> {
    let mut routes = list();
    let paths = &mut routes.get_openapi_mut().paths.paths;
    for item in paths.values_mut() {
        let each = [
            &mut item.get,
            &mut item.put,
            &mut item.patch,
            &mut item.delete,
            &mut item.post,
        ];
        for operation in each.into_iter().flatten() {
            let other = ("default".to_owned(), any_other_problem().into());
            operation.responses.responses.extend([other]);
        }
        if let Some(post) = &mut item.post {
            post.parameters.get_or_insert_default().push(idempotency_key().into());
        }
    }
    routes
}

/// What every operation may answer beside its own statuses.
fn any_other_problem() -> utoipa::openapi::Response {
    let schema = Ref::from_schema_name("ProblemDetails");
    ResponseBuilder::new()
        .description(
            "Any other problem: 400 unreadable request, 403 request of another site, 413 body too large, 415 body that \
             is not JSON, 421 unknown host, 500 defect, 503 store unavailable",
        )
        .content(
            "application/problem+json",
            ContentBuilder::new().schema(Some(schema)).build(),
        )
        .build()
}

/// What every POST takes.
fn idempotency_key() -> Parameter {
    ParameterBuilder::new()
        .name("Idempotency-Key")
        .parameter_in(ParameterIn::Header)
        .description(Some(
            "1 to 255 printable ASCII characters. A repeat of the same request with the same key answers as the first \
             did and changes nothing more, for 24 hours; another request with the same key is refused with 409",
        ))
        .schema(Some(ObjectBuilder::new().schema_type(Type::String)))
        .build()
}

fn list() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(tasks::create, tasks::list))
        .routes(routes!(batch::create))
        .routes(routes!(bulk::start))
        .routes(routes!(tasks::get, tasks::patch, tasks::delete))
        .routes(routes!(tasks::dependencies))
        .routes(routes!(tasks::explain))
        .routes(routes!(commands::execute))
        .routes(routes!(commands::cancel))
        .routes(routes!(commands::pause))
        .routes(routes!(commands::resume))
        .routes(routes!(commands::retry))
        .routes(routes!(commands::signal))
        .routes(routes!(executions::of_task))
        .routes(routes!(executions::events))
        .routes(routes!(logs::read))
        .routes(routes!(executions::list))
        .routes(routes!(executions::get))
        .routes(routes!(agents::register, agents::list))
        .routes(routes!(agents::get, agents::remove))
        .routes(routes!(agents::poll))
        .routes(routes!(agents::heartbeat))
        .routes(routes!(agents::drain))
        .routes(routes!(agents::undrain))
        .routes(routes!(agents::leave))
        .routes(routes!(agents::complete))
        .routes(routes!(system::status))
        .routes(routes!(system::metrics))
        .routes(routes!(system::performance))
        .routes(routes!(system::nodes))
        .routes(routes!(queues::list))
        .routes(routes!(system::queues))
        .routes(routes!(queues::get, queues::put, queues::delete))
        .routes(routes!(queues::pause))
        .routes(routes!(queues::resume))
        .routes(routes!(queues::process))
        .routes(routes!(breakers::list))
        .routes(routes!(breakers::get, breakers::put, breakers::delete))
        .routes(routes!(breakers::reset))
        .routes(routes!(breakers::trip))
        .routes(routes!(dead_letters::list))
        .routes(routes!(dead_letters::groups))
        .routes(routes!(intake::list))
        .routes(routes!(intake::delete))
        .routes(routes!(intake::retry))
        .routes(routes!(system::healthz))
        .routes(routes!(system::readyz))
        .routes(routes!(document))
}

/// The OpenAPI description of the API.
pub fn openapi() -> utoipa::openapi::OpenApi {
    routes().into_openapi()
}

/// This description.
#[utoipa::path(get, path = "/openapi.json", operation_id = "get_openapi", tag = "system",
    responses((status = 200, description = "The OpenAPI 3.1 description of this API", body = Object)))]
async fn document(State(app): State<App>) -> Response {
    (
        [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))],
        app.openapi.clone(),
    )
        .into_response()
}

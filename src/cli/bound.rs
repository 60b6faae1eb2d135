//! Handlers that a configuration file binds to a command or an HTTP call.
//!
//! `${name}` in the texts of a binding is the task's parameter of that name. A command without `stdin` gets all
//! parameters as JSON on its standard input; an HTTP call that may have a body and says none gets them as its body. So
//! a task chooses values, and only the configuration chooses what runs.

use async_trait::async_trait;
use pensum_core::input::Invalid;
use pensum_core::{ErrorInfo, Json, Outcome};
use pensum_engine::handlers::{CommandHandler, HttpHandler};
use pensum_engine::{Context, Handler, kinds};
use serde_json::Map;

use crate::plan::interpolate::Variables;
use crate::yaml::{Fault, Key, Node, Place, Value, from_json, nearest};

/// A name bound to a command or an HTTP call.
pub(crate) struct BoundHandler {
    kind: Kind,
    template: Node,
}

enum Kind {
    Command(CommandHandler),
    Http(HttpHandler),
}

impl std::fmt::Debug for BoundHandler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BoundHandler({})", self.template.json())
    }
}

impl BoundHandler {
    /// Reads `{command: {…}}` or `{http: {…}}`.
    pub(crate) fn new(name: &str, node: &Node) -> Result<BoundHandler, Vec<Fault>> {
        let path = format!("handlers.{name}");
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':' | '/');
        if name.is_empty() || !name.chars().all(fits) || name.starts_with("pensum.") {
            let message = format!("{path}: a handler's name is letters, digits or any of _ - . : /");
            return Err(vec![Fault::new(node.at, message)]);
        }
        let entries = node.entries().unwrap_or_default();
        let [(key, template)] = entries else {
            let message = format!("{path}: must be {{ command: {{ program: … }} }} or {{ http: {{ url: … }} }}");
            return Err(vec![Fault::new(
                entries.get(1).map_or(node.at, |(key, _)| key.at),
                message,
            )]);
        };
        let kind = match key.name.as_str() {
            "command" => Kind::Command(CommandHandler),
            "http" => Kind::Http(HttpHandler::default()),
            other => {
                let near = nearest(other, ["command", "http"]).map(|n| format!("did you mean `{n}`? "));
                let message = format!(
                    "{path}.{other}: there is no such kind of handler; {}known are command, http",
                    near.unwrap_or_default()
                );
                return Err(vec![Fault::new(key.at, message)]);
            }
        };
        if template.entries().is_none() {
            let message = format!("{path}.{}: must be a map, not {}", key.name, template.kind());
            return Err(vec![Fault::new(template.at, message)]);
        }
        let handler = BoundHandler {
            kind,
            template: template.clone(),
        };
        // References are not known before a task comes; a binding without any can be checked in full now.
        if !handler.template.json().contains("${")
            && let Err(Invalid(problems)) = handler.inner().check(&handler.fixed())
        {
            let named = format!("{path}.{}", key.name);
            return Err(problems.iter().map(|problem| template.fault(&named, problem)).collect());
        }
        Ok(handler)
    }

    fn inner(&self) -> &dyn Handler {
        match &self.kind {
            Kind::Command(handler) => handler,
            Kind::Http(handler) => handler,
        }
    }

    fn fixed(&self) -> Json {
        Json::parse(self.template.json()).unwrap_or_default()
    }

    /// The parameters of the bound handler for a task with these parameters.
    fn bind(&self, parameters: &Json) -> Result<Json, Invalid> {
        let given: Map<String, serde_json::Value> = match parameters.value() {
            serde_json::Value::Object(map) => map,
            serde_json::Value::Null => Map::new(),
            _ => {
                return Err(Invalid::one(
                    "",
                    "must be an object whose fields are the values for this handler",
                ));
            }
        };
        let mut variables = Variables::default();
        for (name, value) in &given {
            let node = from_json(&value.to_string()).map_err(|error| Invalid::one(name.as_str(), error.to_string()))?;
            variables.set(name, node);
        }
        let mut filled = self.template.clone();
        let mut faults = Vec::new();
        variables.fill(&mut filled, &mut faults);
        if let Some(fault) = faults.first() {
            let message = fault
                .message
                .replace("there is no variable", "this handler needs the parameter");
            return Err(Invalid::one("", message.split("; ").next().unwrap_or_default()));
        }
        self.add_rest(&mut filled, parameters);
        Json::parse(filled.json()).map_err(|error| Invalid::one("", error.to_string()))
    }

    fn add_rest(&self, filled: &mut Node, parameters: &Json) {
        let method = filled
            .get("method")
            .and_then(Node::text)
            .unwrap_or("GET")
            .to_ascii_uppercase();
        let (name, value) = match self.kind {
            Kind::Command(_) => ("stdin", Value::Text(parameters.get().to_owned())),
            Kind::Http(_) if matches!(method.as_str(), "POST" | "PUT" | "PATCH") => (
                "body",
                from_json(parameters.get()).map_or(Value::Null, |node| node.value),
            ),
            Kind::Http(_) => return,
        };
        if filled.get(name).is_none()
            && let Value::Map(entries) = &mut filled.value
        {
            let at = Place::default();
            entries.push((
                Key {
                    at,
                    name: name.to_owned(),
                },
                Node { at, value },
            ));
        }
    }
}

#[async_trait]
impl Handler for BoundHandler {
    async fn run(&self, ctx: Context) -> Outcome {
        let bound = self.bind(&ctx.spec().parameters);
        match bound {
            Ok(parameters) => self.inner().run(ctx.with_parameters(parameters)).await,
            Err(invalid) => Outcome::Fail(ErrorInfo::new(kinds::BAD_PARAMETERS, format!("parameters: {invalid}"))),
        }
    }

    fn can_pause(&self) -> bool {
        self.inner().can_pause()
    }

    fn check(&self, parameters: &Json) -> Result<(), Invalid> {
        self.inner().check(&self.bind(parameters)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml;

    fn bound(text: &str) -> BoundHandler {
        BoundHandler::new("x", &yaml::read(text).unwrap()).unwrap()
    }

    #[track_caller]
    fn check(binding: &str, parameters: &str, expected: &str) {
        let json = bound(binding)
            .bind(&Json::parse(parameters.to_owned()).unwrap())
            .unwrap();
        assert_eq!(json.get(), expected);
    }

    #[test]
    fn a_task_fills_in_values_and_cannot_choose_the_program() {
        check(
            r#"{command: {program: convert, args: ["${file}", "-n", "${n}"], stdin: ""}}"#,
            r#"{"file":"a b; rm -rf /","n":3,"program":"evil"}"#,
            r#"{"program":"convert","args":["a b; rm -rf /","-n","3"],"stdin":""}"#,
        );
        check(
            r#"{command: {program: worker}}"#,
            r#"{"a":1}"#,
            r#"{"program":"worker","stdin":"{\"a\":1}"}"#,
        );
        check(
            r#"{http: {method: POST, url: "http://127.0.0.1/${id}"}}"#,
            r#"{"id":7}"#,
            r#"{"method":"POST","url":"http://127.0.0.1/7","body":{"id":7}}"#,
        );
    }

    #[test]
    fn a_missing_parameter_is_refused_at_submission() {
        let invalid = bound(r#"{command: {program: convert, args: ["${file}"]}}"#)
            .check(&Json::empty_object())
            .unwrap_err();
        assert!(
            invalid.to_string().contains("this handler needs the parameter `file`"),
            "{invalid}"
        );
    }
}

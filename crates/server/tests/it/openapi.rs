//! The description covers the API, whole and no more.

use std::collections::{BTreeMap, BTreeSet};

use crate::support::{NOBODY, Server};

#[tokio::test]
async fn the_description_has_every_route_and_method_and_no_other() {
    let server = Server::new();
    let document = server.get("/openapi.json").await.expect(200).json();
    assert_eq!(document["openapi"], "3.1.0");
    for (path, item) in document["paths"].as_object().unwrap() {
        let mut documented: BTreeSet<String> = item.as_object().unwrap().keys().map(|m| m.to_uppercase()).collect();
        if documented.contains("GET") {
            documented.insert("HEAD".to_owned());
        }
        // A method that no route takes is answered with those that this one takes.
        let path = path.replace("{id}", NOBODY).replace("{name}", "mail");
        let answer = server.ask("TRACE", &path, None, &[]).await.expect(405);
        let routed: BTreeSet<String> = answer.header("allow").split(',').map(str::to_owned).collect();
        assert_eq!(documented, routed, "{path}");
    }
}

#[tokio::test]
async fn the_routes_of_the_contract_are_there() {
    let document = serde_json::to_value(pensum_server::openapi()).unwrap();
    let routes: BTreeMap<String, Vec<String>> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(path, item)| (path.clone(), item.as_object().unwrap().keys().cloned().collect()))
        .collect();
    insta::assert_json_snapshot!(routes);
}

#[tokio::test]
async fn every_reference_in_the_description_resolves_and_every_answer_has_a_shape() {
    let document = serde_json::to_value(pensum_server::openapi()).unwrap();
    let text = document.to_string();
    let schemas = document["components"]["schemas"].as_object().unwrap();
    for part in text.split("\"#/components/schemas/").skip(1) {
        let name = part.split('"').next().unwrap();
        assert!(schemas.contains_key(name), "no schema {name}");
    }
    for name in [
        "TaskView",
        "TaskInput",
        "Patch",
        "BatchInput",
        "ProblemDetails",
        "ExecutionView",
    ] {
        assert!(schemas.contains_key(name), "no schema {name} in {:?}", schemas.keys());
    }
    let mut ids = BTreeSet::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id), "two operations are called {id}");
            assert_eq!(
                operation["parameters"].to_string().contains("Idempotency-Key"),
                method == "post",
                "{path}"
            );
            assert!(operation["summary"].is_string(), "{method} {path} has no summary");
            for (status, answer) in operation["responses"].as_object().unwrap() {
                let empty = status == "204";
                assert_eq!(
                    answer["content"].is_object(),
                    !empty,
                    "{method} {path} {status}: {answer}"
                );
            }
        }
    }
}

//! The way from an agent to a node, on which requests and answers get lost, are late, or arrive twice.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use pensum_core::store::Call;
use pensum_engine::{Engine, EngineError};
use tokio_util::sync::CancellationToken;

use super::Agent;
use crate::history::Fault;
use crate::wire::writes;
use crate::world::Incarnation;

/// How long an agent waits for an answer.
const PATIENCE: Duration = Duration::from_secs(8);

/// A request under way at a node: it ends there with whoever sent it.
struct UnderWay<T>(tokio::task::JoinHandle<Option<T>>);

impl<T> Drop for UnderWay<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Agent {
    /// Sends a request to one of the nodes; `None` when no answer comes.
    pub(super) async fn send<T, F, Fut>(&self, verb: &'static str, request: F) -> Option<Result<T, EngineError>>
    where
        T: Send + 'static,
        F: Fn(Engine, Call, CancellationToken) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = Result<T, EngineError>> + Send + 'static,
    {
        let node = self.draws.lock().next() as usize % self.world.scenario.nodes.len();
        let fault = self.world.weather.next(writes(verb), self.name.to_string());
        let found = self.world.reach(node).await?;
        let exchange = async {
            match fault {
                None | Some(Fault::Stale) => at(found, request).await,
                Some(Fault::Error) => None,
                Some(Fault::LostReply) => {
                    let _ = at(found, request).await;
                    None
                }
                Some(Fault::Duplicate) => {
                    let _ = at(found.clone(), request.clone()).await;
                    at(found, request).await
                }
                // What is on its way arrives, even if whoever sent it is gone by then.
                Some(Fault::LateRequest(by)) => {
                    let late = tokio::spawn(async move {
                        tokio::time::sleep(by).await;
                        at(found, request).await
                    });
                    late.await.ok().flatten()
                }
                Some(Fault::LateReply(by)) => {
                    let answer = at(found, request).await;
                    tokio::time::sleep(by).await;
                    answer
                }
            }
        };
        tokio::time::timeout(PATIENCE, exchange).await.ok().flatten()
    }
}

/// A request as the node serves it.
async fn at<T, F, Fut>(found: Incarnation, request: F) -> Option<Result<T, EngineError>>
where
    T: Send + 'static,
    F: Fn(Engine, Call, CancellationToken) -> Fut,
    Fut: Future<Output = Result<T, EngineError>> + Send + 'static,
{
    let Incarnation { machine, engine, .. } = found;
    let call = Call::new("an agent", engine.now());
    let served = request(engine, call, CancellationToken::new());
    let machine = Arc::clone(&machine);
    let mut under_way = UnderWay(tokio::spawn(async move { machine.run(served).await }));
    (&mut under_way.0).await.ok().flatten()
}

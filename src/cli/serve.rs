//! `pensum serve`: a node.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use pensum_core::task::Resources;
use pensum_core::{Store, StoreError};
use pensum_engine::{Engine, LEASE_DEFAULT, SLOTS_DEFAULT};
use pensum_server::{AppState, ServerOptions};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::agent::Supervisor;
use super::client::{DB_DEFAULT, check_url, open_store};
use super::config::Config;
use super::exit::{Exit, Failure};
use super::signals::Signals;
use super::{Global, init_logging, machine, output};

/// Where a node listens when it is not told.
const LISTEN_DEFAULT: &str = "127.0.0.1:7400";
/// The longest lease. A node that dies holds on to its tasks for as long, and nothing is gained by more.
const LEASE_SECONDS_MAX: u64 = 3_600;
/// How long closing the store may take before the process ends all the same.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(10);

#[derive(clap::Args, Debug)]
pub(crate) struct Args {
    /// A configuration file; may be repeated, later files win.
    #[arg(long, value_name = "FILE")]
    config: Vec<PathBuf>,
    /// Where to listen: an address of this machine alone. Port 0 takes any free port. [default: 127.0.0.1:7400]
    #[arg(long, env = "PENSUM_LISTEN", value_name = "ADDRESS:PORT")]
    listen: Option<String>,
    /// How many tasks run at once.
    #[arg(long, env = "PENSUM_SLOTS", default_value_t = SLOTS_DEFAULT)]
    slots: usize,
    /// What this machine has for tasks that name resources, such as cpu_cores=4 or gpu_memory_gb=24, instead of its own
    /// processors, memory and disk. May be repeated.
    #[arg(long = "resource", value_name = "NAME=AMOUNT", value_parser = machine::pair)]
    resources: Vec<(String, String)>,
    /// How long running tasks may go on after SIGTERM or SIGINT, in seconds, before they are given back.
    #[arg(long, env = "PENSUM_GRACE", value_name = "SECONDS", default_value_t = 30)]
    grace: u64,
    /// How long a task stays with a node that falls silent, in whole seconds, before another node may run it.
    #[arg(long, env = "PENSUM_LEASE", value_name = "SECONDS", default_value_t = LEASE_DEFAULT.as_secs(),
          value_parser = clap::value_parser!(u64).range(1..=LEASE_SECONDS_MAX))]
    lease: u64,
    /// Whether tasks may name the handlers `command` and `http` themselves. [default: true]
    #[arg(long, value_name = "true|false", num_args = 0..=1, default_missing_value = "true")]
    allow_inline: Option<bool>,
}

pub(crate) async fn serve(global: &Global, args: Args) -> anyhow::Result<Exit> {
    let config = Config::load(&args.config)?;
    init_logging(config.level.as_deref().unwrap_or("info"))?;
    let mut signals = Signals::new().context("cannot listen for signals")?;
    let limits = machine::enforce_limits();

    let listen = args
        .listen
        .clone()
        .or_else(|| config.listen.clone())
        .unwrap_or_else(|| LISTEN_DEFAULT.to_owned());
    let listener = bind(&listen).await?;
    let address = listener.local_addr().context("the listener has no address")?;
    let url = global
        .store()
        .or_else(|| config.store.clone())
        .unwrap_or_else(|| DB_DEFAULT.to_owned());
    check_url(&url)?;
    let store = match open_store(&url, &format!("http://{address}")).await {
        Ok(store) => store,
        Err(StoreError::Locked { path, owner }) => {
            let message =
                format!("{path} is in use by {owner}; stop that first, or give this node another store with --db");
            return Err(Failure::new(Exit::Conflict, message).into());
        }
        Err(error) => return Err(Failure::from(error).into()),
    };
    let allow_inline = args.allow_inline.or(config.allow_inline);
    // Whoever may insert into the intake of a shared store may be anywhere.
    let intake_inline = allow_inline.unwrap_or(false);
    let engine = build(
        &store,
        &args,
        address,
        config.retention(),
        config.handlers,
        intake_inline,
        machine::resources(&args.resources)?,
    );
    let options = ServerOptions {
        // Only users of this machine can reach a node of this version.
        allow_inline: allow_inline.unwrap_or(true),
        allowed_hosts: config.allowed_hosts,
        listen: Some(address),
        ..ServerOptions::new(engine.now())
    };
    super::queue::apply(&engine, config.queues).await?;
    super::breaker::apply(&engine, config.breakers).await?;
    engine.start();
    tracing::info!(%address, store = pensum_store::shown(&url), slots = args.slots, handlers = engine.handlers().len(), "the node runs");
    limits.log();

    let stop = CancellationToken::new();
    let state = AppState {
        engine: engine.clone(),
        options,
    };
    let server = tokio::spawn(pensum_server::serve(listener, state, stop.clone().cancelled_owned()));
    let agents = Supervisor::start(&format!("http://{address}"), config.agents).await?;
    // A reader that went away needs no news; the node runs on.
    let _ = output::println(&format!("listening on http://{address}"));

    let first = signals.next().await;
    tracing::info!(
        grace_seconds = args.grace,
        "stopping: no new work; a second signal ends at once"
    );
    if agents.is_empty() {
        stop.cancel();
    }
    let ended = async {
        // The node's own agents bring their last results while it still listens.
        let (report, ()) = tokio::join!(engine.shutdown(Duration::from_secs(args.grace)), agents.stop());
        stop.cancel();
        let _ = server.await;
        close(&store).await;
        report
    };
    tokio::select! {
        report = ended => {
            tracing::info!(ended = report.ended, given_back = report.given_back, unsaved = report.unsaved, "stopped");
            Ok(Exit::Ok)
        }
        second = signals.next() => {
            tracing::warn!("ending at once; what ran here runs again later");
            engine.abort().await;
            Ok(if second == Exit::Terminated { second } else { first })
        }
    }
}

fn build(
    store: &Arc<dyn Store>,
    args: &Args,
    address: SocketAddr,
    retention: pensum_core::store::Retention,
    handlers: Vec<(String, super::bound::BoundHandler)>,
    intake_inline: bool,
    resources: Resources,
) -> Engine {
    let mut builder = Engine::builder(Arc::clone(store))
        .builtin_handlers()
        .slots(args.slots)
        .resources(resources)
        .lease(Duration::from_secs(args.lease))
        .address(format!("http://{address}"))
        .retention(retention)
        .allow_inline(intake_inline);
    for (name, handler) in handlers {
        builder = builder.handler(name, handler);
    }
    builder.build()
}

async fn bind(listen: &str) -> anyhow::Result<TcpListener> {
    let Some(address) = tokio::net::lookup_host(listen)
        .await
        .ok()
        .and_then(|mut found| found.next())
    else {
        let message = format!("--listen {listen}: is not an address with a port, such as {LISTEN_DEFAULT}");
        return Err(Failure::usage(message).into());
    };
    check_loopback(address)?;
    TcpListener::bind(address).await.map_err(|error| {
        let message = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                format!("{address} is in use by another program; give --listen another port, or 0 for any")
            }
            _ => format!("cannot listen on {address}: {error}"),
        };
        Failure::new(Exit::Conflict, message).into()
    })
}

fn check_loopback(address: SocketAddr) -> Result<(), Failure> {
    if address.ip().is_loopback() {
        return Ok(());
    }
    let message = format!(
        "refusing to listen on {address}: this version has no authentication, so other machines must not reach it\n\
         Listen on 127.0.0.1, and reach it from elsewhere through an SSH tunnel or a proxy that authenticates"
    );
    Err(Failure::usage(message))
}

async fn close(store: &Arc<dyn Store>) {
    match tokio::time::timeout(CLOSE_TIME_MAX, store.close()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "the store did not close cleanly"),
        Err(_) => tracing::error!("the store did not close in time"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_addresses_are_served() {
        assert!(check_loopback("127.0.0.1:1".parse().unwrap()).is_ok());
        assert!(check_loopback("[::1]:1".parse().unwrap()).is_ok());
        assert!(
            check_loopback("0.0.0.0:1".parse().unwrap())
                .unwrap_err()
                .message
                .contains("no authentication")
        );
    }
}

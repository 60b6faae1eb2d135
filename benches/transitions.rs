//! What one decision, one input and one answer cost, without any store: `cargo bench --bench transitions`.
//!
//! Figures of the whole program come from `pensum bench`; docs/performance.md has both.

use std::collections::HashMap;
use std::time::Duration;

use divan::{Bencher, black_box};
use pensum_core::input::{self, BatchInput, TaskInput};
use pensum_core::task::{Lease, OnDependencyFailure};
use pensum_core::transition::Report;
use pensum_core::view::TaskView;
use pensum_core::{Event, Json, LeaseId, Lifecycle, NodeId, Spec, TaskId, TaskRecord, Time, apply};

const NOW: Time = Time::from_micros(1_700_000_000_000_000);
const LEASE: LeaseId = LeaseId(7);

fn main() {
    divan::main();
}

fn queued() -> Lifecycle {
    Lifecycle::new(NOW, None, 0, OnDependencyFailure::Cancel)
}

fn claim() -> Event {
    Event::Claim(Lease {
        id: LEASE,
        node: NodeId(1),
        expires_at: NOW.plus(Duration::from_secs(30)),
    })
}

#[divan::bench]
fn apply_a_claim(bencher: Bencher<'_, '_>) {
    let (task, event) = (queued(), claim());
    bencher.bench(|| apply(black_box(&task), black_box(&event), NOW));
}

#[divan::bench]
fn apply_an_end(bencher: Bencher<'_, '_>) {
    let running = apply(&queued(), &claim(), NOW)
        .map(|t| t.next)
        .unwrap_or_else(|_| queued());
    let event = Event::Holder(LEASE, Report::Done);
    bencher.bench(|| apply(black_box(&running), black_box(&event), NOW));
}

#[divan::bench]
fn apply_a_refusal(bencher: Bencher<'_, '_>) {
    let task = queued();
    let event = Event::Holder(LEASE, Report::Done);
    bencher.bench(|| apply(black_box(&task), black_box(&event), NOW));
}

fn parameters() -> String {
    format!("{{\"url\":\"https://example.com/\",\"text\":\"{}\"}}", "x".repeat(150))
}

fn task_text() -> String {
    format!(
        "{{\"handler\":\"send\",\"queue\":\"mail\",\"priority\":\"high\",\"max_retries\":5,\"parameters\":{}}}",
        parameters()
    )
}

#[divan::bench]
fn read_and_check_a_task(bencher: Bencher<'_, '_>) {
    let (text, none) = (task_text(), HashMap::new());
    bencher.bench(|| {
        let input: Result<TaskInput, _> = input::parse(black_box(text.as_bytes()));
        input.and_then(|input| input.resolve(&none, NOW))
    });
}

#[divan::bench(args = [1_000, 10_000])]
fn read_and_check_a_batch_in_a_chain(bencher: Bencher<'_, '_>, count: usize) {
    let items: Vec<String> = (0..count)
        .map(|index| {
            let before = index.checked_sub(1).map(|b| format!("\"t{b}\"")).unwrap_or_default();
            format!(
                "{{\"ref\":\"t{index}\",\"handler\":\"send\",\"parameters\":{},\"depends_on\":[{before}]}}",
                parameters()
            )
        })
        .collect();
    let text = format!("{{\"tasks\":[{}]}}", items.join(","));
    bencher.counter(divan::counter::ItemsCount::new(count)).bench(|| {
        let batch: Result<BatchInput, _> = input::parse(black_box(text.as_bytes()));
        batch
            .and_then(|batch| batch.resolve(NOW))
            .map(|tasks| pensum_core::graph::find_cycle(&tasks))
    });
}

#[divan::bench]
fn write_a_task_as_json(bencher: Bencher<'_, '_>) {
    let record = TaskRecord {
        id: TaskId::mint(NOW, 77, 0x1234_5678_9abc_def0),
        created_at: NOW,
        spec: Spec::new("send", Json::parse(parameters()).unwrap_or_default()),
        lifecycle: queued(),
        progress: None,
        result: None,
        error: None,
        depends_on: Vec::new(),
        version: 1,
    };
    bencher
        .with_inputs(|| record.clone())
        .bench_values(|record| serde_json::to_vec(&TaskView::of(record, NOW)));
}

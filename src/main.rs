//! The program `pensum`.

mod cli;
mod plan;
mod yaml;

/// Tasks are made on one thread and dropped on another all the time; the allocator of glibc holds a lock for that, which
/// cost a third of the throughput.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    cli::main()
}

//! The program `pensum`.

mod cli;
mod plan;
mod yaml;

fn main() -> std::process::ExitCode {
    cli::main()
}

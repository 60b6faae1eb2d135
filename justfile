# One line per verb; `just` alone lists them. `./test` is the whole of what must pass.

_list:
    @just --list --unsorted

# Compile and lint everything, warnings are errors
check:
    cargo clippy --workspace --all-targets -- -D warnings

# Format all Rust code
fmt:
    cargo fmt

# Run every check and test
test:
    ./test

# Run every check and test, with the long cases
test-long:
    ./test --long

# Live through simulated worlds, such as `just sim --seeds 10000`, or `just sim --seed 7` for its story
sim *ARGS:
    cargo run --release -p pensum-sim -- {{ARGS}}

# Start the PostgreSQL that tests run against, and leave it running
postgres:
    tests/postgres start

# Stop it and forget its data
postgres-stop:
    tests/postgres stop

# Measure, beside the raw store as baseline
bench *ARGS:
    cargo run --release -- bench {{ARGS}}

# Run a plan or workflow file, by default the repository analysis
run FILE="examples/repo-analysis.yaml" *ARGS:
    cargo run -- run {{FILE}} {{ARGS}}

# Start a node on http://127.0.0.1:7400
serve *ARGS:
    cargo run --release -- serve {{ARGS}}

# Build the library documentation
doc:
    cargo doc --workspace --no-deps

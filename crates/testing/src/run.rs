//! What whoever starts the tests asks of them.

/// True when the heavier versions are asked for: `PENSUM_TEST_LONG` says something.
pub fn is_long() -> bool {
    std::env::var_os("PENSUM_TEST_LONG").is_some_and(|value| !value.is_empty())
}

/// The choices that `PENSUM_TEST_SEED` wants repeated.
///
/// # Panics
/// When it is no number.
pub fn given_seed() -> Option<u64> {
    let text = std::env::var("PENSUM_TEST_SEED").ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("PENSUM_TEST_SEED={text} is no number")),
    )
}

/// The same, or choices that follow from the clock; printed, so that they can be repeated.
#[expect(clippy::print_stdout, reason = "whoever reads of a failure wants to repeat it")]
pub fn seed() -> u64 {
    let clock = || {
        let since = std::time::SystemTime::UNIX_EPOCH.elapsed();
        since.map_or(0, |since| since.subsec_nanos().into())
    };
    let seed = given_seed().unwrap_or_else(clock);
    println!("seed: PENSUM_TEST_SEED={seed}");
    seed
}

//! Sizes and durations as people write them in a command's limits.

use std::time::Duration;

use pensum_core::time::Span;

/// Reads a number of bytes: `1048576`, `512MiB`, `1.5 GB`. `KB`, `MB`, `GB`, `TB` are powers of 1000; `KiB`, `MiB`, `GiB`, `TiB` and
/// the bare letters are powers of 1024, as for container runtimes.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    const HELP: &str = "write a number of bytes, or a number with a unit such as 512MiB or 1GB";
    let text = text.trim();
    let (number, unit) = split_number(text).ok_or_else(|| format!("`{text}` is not a size; {HELP}"))?;
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" => 1e3,
        "mb" => 1e6,
        "gb" => 1e9,
        "tb" => 1e12,
        "k" | "kib" => 1024.0,
        "m" | "mib" => 1024.0 * 1024.0,
        "g" | "gib" => 1024.0 * 1024.0 * 1024.0,
        "t" | "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        other => return Err(format!("`{other}` in `{text}` is not a unit of size; {HELP}")),
    };
    bytes_from(number * factor).ok_or_else(|| format!("`{text}` is not between 1 byte and 8 EiB; {HELP}"))
}

/// `None` unless the figure is at least one byte and fits a signed 64-bit number, the widest that every store keeps.
pub(super) fn bytes_from(figure: f64) -> Option<u64> {
    // `i64::MAX as f64` is 2^63; the comparison is false for NaN.
    (figure >= 1.0 && figure < i64::MAX as f64).then_some(figure as u64)
}

/// Reads a duration that is longer than zero, as everywhere else in a task: `90`, `500ms`, `1h 30m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match Span::parse(text)?.0 {
        Duration::ZERO => Err(format!("`{}` must be longer than zero", text.trim())),
        duration => Ok(duration),
    }
}

/// `None` unless the figure is positive and no longer than a [`Span`] may be.
pub(super) fn duration_from(seconds: f64) -> Option<Duration> {
    Span::from_seconds(seconds)
        .ok()
        .map(|span| span.0)
        .filter(|d| !d.is_zero())
}

/// The unsigned decimal number a text begins with, and what follows it.
fn split_number(text: &str) -> Option<(f64, &str)> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let number = text[..end].parse().ok()?;
    Some((number, &text[end..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_written() {
        for (text, expected) in [
            ("1048576", 1_048_576),
            ("512MiB", 512 << 20),
            ("1GB", 1_000_000_000),
            ("1.5 GiB", 3 << 29),
            ("64k", 65_536),
            ("10 b", 10),
        ] {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "MiB", "0", "-1", "0.2", "12 parsecs", "1e9", "1.2.3MB", "9999999TB"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_read_as_written() {
        for (text, expected_ms) in [
            ("90", 90_000),
            ("2.5", 2500),
            ("1h 30m", 5_400_000),
            ("1h30m", 5_400_000),
            ("500ms", 500),
            ("2 days", 172_800_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(expected_ms)), "{text}");
        }
        for text in ["", "0", "-5", "soon", "1h 30", "5 fortnights", "nan", "inf", "1e300"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }
}

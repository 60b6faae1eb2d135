//! Output of a command: two byte streams made into lines, with bounds on all that is kept.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Most bytes of lines handed to the sink, both streams together. What comes after is read, counted and dropped.
pub const CAPTURED_BYTES_MAX: usize = 1024 * 1024;
/// Most bytes of standard output kept for the result.
pub const STDOUT_BYTES_MAX: usize = 1024 * 1024;
/// Most bytes of the end of standard error kept for an error's message.
pub const STDERR_TAIL_BYTES_MAX: usize = 4 * 1024;
/// A longer line is handed on in pieces of this many bytes.
pub const LINE_BYTES_MAX: usize = 8 * 1024;
/// The line that stands in place of all output past [`CAPTURED_BYTES_MAX`].
pub const TRUNCATED_MARKER: &str = "[output truncated: the first 1 MiB was kept, the rest is dropped]";

/// Size of one read: a quarter of a pipe's buffer.
const READ_BYTES: usize = 16 * 1024;

/// Which of a command's two outputs a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Takes each line as it comes. It is called between reads and should not block.
pub(super) type Sink = Box<dyn FnMut(Stream, String) + Send>;

/// All that is kept of a command's output, and the way to the sink.
pub(super) struct Capture {
    outlet: Outlet,
    out: Lines,
    err: Lines,
    stdout: Vec<u8>,
    stdout_truncated: bool,
    stderr_tail: Vec<u8>,
}

/// The way to the sink, which closes once [`CAPTURED_BYTES_MAX`] have gone through.
struct Outlet {
    sink: Sink,
    handed: usize,
    truncated: bool,
    dropped: u64,
}

impl Outlet {
    /// Hands on a line that took `taken` bytes in its stream, or counts it as dropped.
    fn hand(&mut self, stream: Stream, line: &[u8], taken: usize) {
        if !self.truncated && self.handed + taken <= CAPTURED_BYTES_MAX {
            self.handed += taken;
            (self.sink)(stream, text(line).into_owned());
            return;
        }
        self.dropped += taken as u64;
        if !self.truncated {
            self.truncated = true;
            (self.sink)(stream, TRUNCATED_MARKER.to_owned());
        }
    }
}

/// What remains of a command's output at its end.
pub(super) struct Captured {
    pub(super) stdout: String,
    pub(super) stdout_truncated: bool,
    pub(super) stderr_tail: String,
    pub(super) dropped: u64,
}

impl Capture {
    pub(super) fn new(sink: Sink) -> Self {
        Self {
            outlet: Outlet {
                sink,
                handed: 0,
                truncated: false,
                dropped: 0,
            },
            out: Lines::default(),
            err: Lines::default(),
            stdout: Vec::new(),
            stdout_truncated: false,
            stderr_tail: Vec::new(),
        }
    }

    /// Takes bytes as they were read; lines that they complete go to the sink.
    pub(super) fn push(&mut self, stream: Stream, bytes: &[u8]) {
        match stream {
            Stream::Stdout => {
                let room = STDOUT_BYTES_MAX - self.stdout.len();
                self.stdout.extend_from_slice(&bytes[..bytes.len().min(room)]);
                self.stdout_truncated |= bytes.len() > room;
            }
            Stream::Stderr => {
                self.stderr_tail.extend_from_slice(bytes);
                // Cut only now and then, so that a flood of short writes does not move the tail each time.
                if self.stderr_tail.len() > 4 * STDERR_TAIL_BYTES_MAX {
                    self.stderr_tail.drain(..self.stderr_tail.len() - STDERR_TAIL_BYTES_MAX);
                }
            }
        }
        let lines = if stream == Stream::Stdout {
            &mut self.out
        } else {
            &mut self.err
        };
        let outlet = &mut self.outlet;
        lines.push(bytes, |line, taken| outlet.hand(stream, line, taken));
    }

    /// Hands on what a stream ended with, where no newline closed it, and gives up the rest.
    pub(super) fn finish(mut self) -> Captured {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let lines = if stream == Stream::Stdout {
                &mut self.out
            } else {
                &mut self.err
            };
            let rest = std::mem::take(&mut lines.pending);
            if !rest.is_empty() {
                self.outlet.hand(stream, &rest, rest.len());
            }
        }
        if self.stdout_truncated {
            self.stdout.truncate(whole_characters(&self.stdout));
        }
        let mut stdout = text(&self.stdout).into_owned();
        // Replaced bytes grow to three.
        if stdout.len() > STDOUT_BYTES_MAX {
            stdout.truncate(stdout.floor_char_boundary(STDOUT_BYTES_MAX));
            self.stdout_truncated = true;
        }
        let tail = self.stderr_tail.len().saturating_sub(STDERR_TAIL_BYTES_MAX);
        let mut tail = &self.stderr_tail[tail..];
        // A cut tail may begin inside a character.
        while tail.len() < self.stderr_tail.len() && tail.first().is_some_and(|byte| byte & 0xC0 == 0x80) {
            tail = &tail[1..];
        }
        Captured {
            stdout,
            stdout_truncated: self.stdout_truncated,
            stderr_tail: text(tail).into_owned(),
            dropped: self.outlet.dropped,
        }
    }
}

/// Reads both outputs until each has ended, whichever has something first. An error of a pipe ends that pipe.
pub(super) async fn read_all(
    mut stdout: impl AsyncRead + Unpin,
    mut stderr: impl AsyncRead + Unpin,
    capture: &mut Capture,
) {
    let mut out_bytes = vec![0; READ_BYTES];
    let mut err_bytes = vec![0; READ_BYTES];
    let (mut out_open, mut err_open) = (true, true);
    while out_open || err_open {
        tokio::select! {
            read = stdout.read(&mut out_bytes), if out_open => match read {
                Ok(count) if count > 0 => capture.push(Stream::Stdout, &out_bytes[..count]),
                _ => out_open = false,
            },
            read = stderr.read(&mut err_bytes), if err_open => match read {
                Ok(count) if count > 0 => capture.push(Stream::Stderr, &err_bytes[..count]),
                _ => err_open = false,
            },
        }
    }
}

/// Cuts a byte stream at newlines, and at [`LINE_BYTES_MAX`] where there is none.
#[derive(Default)]
struct Lines {
    pending: Vec<u8>,
    /// The line being read was already handed on in part, so an empty rest is no line of its own.
    split: bool,
}

impl Lines {
    /// Calls `emit` with each complete line, its end (`\n` or `\r\n`) removed, and the number of bytes it took in the stream.
    fn push(&mut self, mut bytes: &[u8], mut emit: impl FnMut(&[u8], usize)) {
        while !bytes.is_empty() {
            let newline = bytes.iter().take(LINE_BYTES_MAX + 1).position(|byte| *byte == b'\n');
            let room = LINE_BYTES_MAX - self.pending.len();
            match newline {
                Some(at) if at <= room => {
                    self.pending.extend_from_slice(&bytes[..at]);
                    bytes = &bytes[at + 1..];
                    let taken = self.pending.len() + 1;
                    let line = self.pending.strip_suffix(b"\r").unwrap_or(&self.pending);
                    if !(self.split && line.is_empty()) {
                        emit(line, taken);
                    }
                    self.pending.clear();
                    self.split = false;
                }
                _ if bytes.len() <= room => {
                    self.pending.extend_from_slice(bytes);
                    return;
                }
                _ => {
                    self.pending.extend_from_slice(&bytes[..room]);
                    bytes = &bytes[room..];
                    let cut = whole_characters(&self.pending);
                    emit(&self.pending[..cut], cut);
                    self.pending.drain(..cut);
                    self.split = true;
                }
            }
        }
    }
}

/// Length of `bytes` without a character that the end cuts through. Never zero for a full buffer: at most three bytes are left off.
fn whole_characters(bytes: &[u8]) -> usize {
    let lead = bytes.iter().rev().take(4).position(|byte| byte & 0xC0 != 0x80);
    let Some(back) = lead else { return bytes.len() };
    let start = bytes.len() - 1 - back;
    let length = match bytes[start] {
        0xC2..=0xDF => 2,
        0xE0..=0xEF => 3,
        0xF0..=0xF4 => 4,
        _ => 1,
    };
    if back + 1 < length && start > 0 {
        start
    } else {
        bytes.len()
    }
}

/// Bytes as text that every store and every JSON reader takes: invalid UTF-8 and NUL become U+FFFD.
fn text(bytes: &[u8]) -> Cow<'_, str> {
    let text = String::from_utf8_lossy(bytes);
    if text.contains('\0') {
        Cow::Owned(text.replace('\0', "\u{FFFD}"))
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// The lines that `input`, pushed in pieces of `step` bytes, makes of standard output.
    fn lines(input: &[u8], step: usize) -> Vec<String> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let keep = seen.clone();
        let mut capture = Capture::new(Box::new(move |_, line| keep.lock().unwrap().push(line)));
        for piece in input.chunks(step) {
            capture.push(Stream::Stdout, piece);
        }
        capture.finish();
        let seen = seen.lock().unwrap();
        seen.clone()
    }

    #[test]
    fn lines_are_the_same_however_the_bytes_arrive() {
        for step in [1, 2, 3, 7, 8192, 65536] {
            assert_eq!(
                lines(b"one\ntwo\r\n\nlast", step),
                ["one", "two", "", "last"],
                "step {step}"
            );
            assert_eq!(
                lines(b"a\0b \xFF \xE2\x82\xAC\n", step),
                ["a\u{FFFD}b \u{FFFD} €"],
                "step {step}"
            );
            let long = "€".repeat(LINE_BYTES_MAX);
            let pieces = lines(format!("{long}\nnext\n").as_bytes(), step);
            assert!(
                pieces
                    .iter()
                    .all(|piece| piece.len() <= LINE_BYTES_MAX && !piece.contains('\u{FFFD}')),
                "step {step}"
            );
            assert_eq!(pieces[..pieces.len() - 1].concat(), long, "step {step}");
            assert_eq!(pieces.last().unwrap(), "next");
        }
    }

    #[test]
    fn a_line_of_exactly_the_maximum_is_one_line() {
        for end in ["\n", "\r\n"] {
            let line = "x".repeat(LINE_BYTES_MAX);
            for step in [1000, 8192, 8193, 100_000] {
                assert_eq!(
                    lines(format!("{line}{end}y{end}").as_bytes(), step),
                    [line.as_str(), "y"],
                    "step {step}"
                );
            }
        }
    }

    #[test]
    fn output_past_the_cap_is_one_marker_and_a_count() {
        let line = [b'x'; 99];
        let mut input = Vec::new();
        while input.len() < 2 * CAPTURED_BYTES_MAX {
            input.extend_from_slice(&line);
            input.push(b'\n');
        }
        let seen = lines(&input, 4096);
        assert_eq!(seen.iter().filter(|line| *line == TRUNCATED_MARKER).count(), 1);
        assert_eq!(seen.last().unwrap(), TRUNCATED_MARKER);
        let mut capture = Capture::new(Box::new(|_, _| {}));
        capture.push(Stream::Stdout, &input);
        capture.push(Stream::Stderr, &input);
        let kept = capture.finish();
        assert!(kept.stdout_truncated);
        assert_eq!(kept.stdout.len(), STDOUT_BYTES_MAX);
        assert!(kept.stderr_tail.len() <= STDERR_TAIL_BYTES_MAX);
        assert_eq!(kept.dropped as usize, 2 * input.len() - CAPTURED_BYTES_MAX / 100 * 100);
    }

    #[test]
    fn kept_output_never_outgrows_its_cap_when_bytes_are_replaced() {
        let mut capture = Capture::new(Box::new(|_, _| {}));
        capture.push(Stream::Stdout, &vec![0xFF; STDOUT_BYTES_MAX]);
        let kept = capture.finish();
        assert!(kept.stdout.len() <= STDOUT_BYTES_MAX);
        assert!(kept.stdout_truncated);
    }
}

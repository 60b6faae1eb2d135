//! Pages as lists of steps.

use std::path::Path;

use super::shell::names_database;

/// Something that a page has its reader do.
#[derive(Debug, PartialEq)]
pub(crate) struct Step {
    /// Where it stands, from 1.
    pub(crate) line: usize,
    pub(crate) what: What,
}

#[derive(Debug, PartialEq)]
pub(crate) enum What {
    /// Write a file.
    File { name: String, text: String },
    /// Type a command.
    Command(Command),
}

#[derive(Debug, Default, PartialEq)]
pub(crate) struct Command {
    /// What is typed.
    pub(crate) text: String,
    /// What is shown of its output.
    pub(crate) shown: Vec<String>,
}

impl Command {
    /// True when it goes on beside those that follow.
    pub(crate) fn is_background(&self) -> bool {
        self.text.ends_with(" &")
    }

    /// The exit code that it ends with.
    pub(crate) fn exit(&self) -> i32 {
        let named = self
            .text
            .rsplit_once("# exit ")
            .and_then(|(_, code)| code.trim().parse().ok());
        named.unwrap_or(0)
    }
}

impl Step {
    /// True when it is a command that uses a program.
    pub(crate) fn runs(&self, program: &str) -> bool {
        match &self.what {
            What::Command(command) => command.text.split_whitespace().any(|word| word.ends_with(program)),
            What::File { .. } => false,
        }
    }

    /// True when it needs the database that pages name.
    pub(crate) fn names_database(&self) -> bool {
        match &self.what {
            What::Command(command) => names_database(&command.text),
            What::File { text, .. } => names_database(text),
        }
    }
}

/// The steps of a page, in its order.
pub(crate) fn read(path: &Path) -> Vec<Step> {
    parse(&std::fs::read_to_string(path).unwrap())
}

/// The blocks of a page in one language.
pub(crate) fn blocks(text: &str, language: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(info) = line.trim_start().strip_prefix("```") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| line.trim() != "```").collect();
            found.extend((info.trim() == language).then(|| block.join("\n")));
        }
    }
    found
}

fn parse(text: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        let Some(info) = line.trim_start().strip_prefix("```") else {
            continue;
        };
        let indent = line.len() - line.trim_start().len();
        let block: Vec<(usize, &str)> = lines
            .by_ref()
            .take_while(|(_, line)| line.trim() != "```")
            .map(|(at, line)| (at + 1, line.get(indent..).unwrap_or_default()))
            .collect();
        if info.trim() == "console" {
            steps.extend(commands(&block));
        } else if let Some((_, name)) = info.split_once("file=") {
            let text = block.iter().map(|(_, line)| format!("{line}\n")).collect();
            let name = name.trim().to_owned();
            steps.push(Step {
                line: at + 1,
                what: What::File { name, text },
            });
        }
    }
    steps
}

fn commands(block: &[(usize, &str)]) -> Vec<Step> {
    let mut found: Vec<(usize, Command)> = Vec::new();
    for (at, line) in block {
        if let Some(text) = line.strip_prefix("$ ") {
            let text = text.to_owned();
            found.push((
                *at,
                Command {
                    text,
                    shown: Vec::new(),
                },
            ));
            continue;
        }
        let Some((_, command)) = found.last_mut() else {
            panic!("line {at}: a console block begins with a command");
        };
        match line.strip_prefix("> ") {
            Some(more) if command.shown.is_empty() => command.text.push_str(&format!("\n{more}")),
            _ => command.shown.push(line.trim_end().to_owned()),
        }
    }
    // A blank line between two commands is only that.
    for (_, command) in &mut found {
        while command.shown.last().is_some_and(String::is_empty) {
            command.shown.pop();
        }
    }
    let step = |(line, command)| Step {
        line,
        what: What::Command(command),
    };
    found.into_iter().map(step).collect()
}

/// True when what is shown is what was printed.
pub(crate) fn is_shown(shown: &[String], printed: &[&str]) -> bool {
    match shown.split_first() {
        None => printed.is_empty(),
        Some((any, rest)) if any == "…" => (0..=printed.len()).any(|skip| is_shown(rest, &printed[skip..])),
        Some((line, rest)) => match printed.split_first() {
            Some((found, more)) => is_line(line, found) && is_shown(rest, more),
            None => false,
        },
    }
}

/// True when the lines that are shown are among those that were printed, in their order.
pub(crate) fn is_among(shown: &[String], printed: &[&str]) -> bool {
    let mut printed = printed.iter();
    shown.iter().all(|line| printed.any(|found| is_line(line, found)))
}

/// Compares two lines; how wide the columns of a table are depends on what is in them.
fn is_line(shown: &str, printed: &str) -> bool {
    let narrow = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    matches(&narrow(shown), &narrow(printed))
}

fn matches(shown: &str, printed: &str) -> bool {
    let Some((start, rest)) = shown.split_once('…') else {
        return shown == printed;
    };
    let Some(printed) = printed.strip_prefix(start) else {
        return false;
    };
    let ends = printed.char_indices().map(|(at, _)| at).chain([printed.len()]);
    ends.rev().any(|at| matches(rest, &printed[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_files_and_commands() {
        let text = "Text\n```yaml file=a.yaml\nx: 1\n```\n\n- item\n  ```console\n  $ ls # exit 2\n  a\n\n  $ cat <<E\n  > b\n  > E\n  b\n  ```\n```sh\n$ no\n```\n";
        let steps = parse(text);
        let file = What::File {
            name: "a.yaml".to_owned(),
            text: "x: 1\n".to_owned(),
        };
        assert_eq!((steps[0].line, &steps[0].what), (2, &file));
        let [What::Command(ls), What::Command(cat)] = [&steps[1].what, &steps[2].what] else {
            panic!("{steps:?}");
        };
        assert_eq!(
            (ls.exit(), ls.shown.as_slice(), steps[1].line),
            (2, ["a".to_owned()].as_slice(), 8)
        );
        assert_eq!((cat.exit(), &*cat.text, steps.len()), (0, "cat <<E\nb\nE", 3));
    }

    #[track_caller]
    fn check(shown: &str, printed: &str, same: bool) {
        let shown: Vec<String> = shown.lines().map(str::to_owned).collect();
        let printed: Vec<&str> = printed.lines().collect();
        assert_eq!(is_shown(&shown, &printed), same, "{shown:?} {printed:?}");
    }

    #[test]
    fn dots_stand_for_any_text_and_any_lines() {
        check("a\nb", "a\nb", true);
        check("a", "a\nb", false);
        check("a\n…\nd", "a\nb\nc\nd", true);
        check("a\n…\nd", "a\nd", true);
        check("a\n…", "b", false);
        check("id …-… end", "id 12-34 end", true);
        check("id … end", "id 12", false);
        check("…x", "axbx", true);
        check("A  B", "A     B", true);
        let shown = ["b".to_owned(), "d…".to_owned()];
        assert!(is_among(&shown, &["a", "b", "c", "de"]) && !is_among(&shown, &["de", "b"]));
    }
}

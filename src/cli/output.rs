//! What goes to standard output, in the format that was asked for, and nothing else does.

use std::io::{self, Write};
use std::time::Duration;

use clap::ValueEnum;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use pensum_core::Time;
use serde_json::Value;

use super::exit::{Exit, Failure};
use crate::yaml;

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns for people.
    #[default]
    Table,
    /// The same with more columns and full ids.
    Wide,
    /// One indented JSON document.
    Json,
    /// One JSON object a line.
    Jsonl,
    /// YAML.
    Yaml,
    /// Ids only, one a line.
    Name,
}

impl Format {
    /// True for the formats that people read.
    pub(crate) const fn is_for_people(self) -> bool {
        matches!(self, Format::Table | Format::Wide)
    }
}

/// Writes to standard output. A reader that went away (`| head`) ends the program quietly.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(Failure::silent(Exit::Ok).into()),
        result => Ok(result?),
    }
}

/// Writes a line to standard output.
pub(crate) fn println(line: &str) -> anyhow::Result<()> {
    print(&format!("{line}\n"))
}

/// Writes a line to standard error, where its loss harms nothing.
pub(crate) fn warn(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    /// The heading.
    pub(crate) header: &'static str,
    /// Shown in the wide format only.
    pub(crate) wide: bool,
    /// Numbers, set to the right.
    pub(crate) right: bool,
    /// The text of an item.
    pub(crate) cell: fn(&Value, Time) -> String,
}

impl Column {
    /// A column of text.
    pub(crate) const fn text(header: &'static str, cell: fn(&Value, Time) -> String) -> Column {
        Column {
            header,
            wide: false,
            right: false,
            cell,
        }
    }

    /// A column of numbers.
    pub(crate) const fn number(header: &'static str, cell: fn(&Value, Time) -> String) -> Column {
        Column {
            header,
            wide: false,
            right: true,
            cell,
        }
    }

    /// The same column, in the wide format only.
    pub(crate) const fn wide(mut self) -> Column {
        self.wide = true;
        self
    }
}

/// Prints a list. `items` are JSON texts; `next` is the cursor of the next page.
pub(crate) fn list(
    format: Format,
    columns: &[Column],
    items: &[String],
    next: Option<&str>,
    now: Time,
) -> anyhow::Result<()> {
    match format {
        Format::Table | Format::Wide => print(&table(format, columns, &values(items)?, now)),
        Format::Json => println(&document(items, next)?),
        Format::Yaml => print(&yaml_text(&document(items, next)?)?),
        Format::Jsonl => items.iter().try_for_each(|item| println(item)),
        Format::Name => values(items)?.iter().try_for_each(|item| println(&name_of(item))),
    }
}

/// Prints one thing that has an id: as a block of lines for people, or as data.
pub(crate) fn item(format: Format, item: &str, for_people: impl Fn(&Value) -> String) -> anyhow::Result<()> {
    match format {
        Format::Table | Format::Wide => print(&for_people(&serde_json::from_str(item)?)),
        Format::Json => println(&pretty(item)?),
        Format::Jsonl => println(item),
        Format::Yaml => print(&yaml_text(item)?),
        Format::Name => println(&name_of(&serde_json::from_str(item)?)),
    }
}

fn values(items: &[String]) -> anyhow::Result<Vec<Value>> {
    Ok(items
        .iter()
        .map(|item| serde_json::from_str(item))
        .collect::<Result<_, _>>()?)
}

fn document(items: &[String], next: Option<&str>) -> anyhow::Result<String> {
    let text = format!(
        "{{\"items\":[{}],\"next_cursor\":{}}}",
        items.join(","),
        serde_json::to_string(&next)?
    );
    pretty(&text)
}

/// JSON with line breaks, its keys in the order in which they came.
pub(crate) fn pretty(text: &str) -> anyhow::Result<String> {
    Ok(serde_json::to_string_pretty(&yaml::from_json(text)?)?)
}

fn yaml_text(text: &str) -> anyhow::Result<String> {
    let mut out = serde_saphyr::to_string(&yaml::from_json(text)?)?;
    if !out.ends_with('\n') {
        out.push('\n');
    }
    Ok(out)
}

fn name_of(item: &Value) -> String {
    let named = ["id", "name", "task"].iter().map(|key| plain(&item[*key]));
    named.into_iter().find(|name| !name.is_empty()).unwrap_or_default()
}

/// The lines of a table.
pub(crate) fn table(format: Format, columns: &[Column], items: &[Value], now: Time) -> String {
    let columns: Vec<&Column> = columns.iter().filter(|c| !c.wide || format == Format::Wide).collect();
    let rows = items.iter().map(|item| {
        columns
            .iter()
            .map(|column| one_line(&(column.cell)(item, now)))
            .collect()
    });
    let headers = columns.iter().map(|column| column.header).collect();
    let right: Vec<bool> = columns.iter().map(|column| column.right).collect();
    aligned(headers, &right, rows.collect())
}

/// A table without borders, as wide as its content.
pub(crate) fn aligned(headers: Vec<&str>, right: &[bool], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(headers.into_iter().map(|header| header.to_uppercase()));
    table.add_rows(rows);
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if right.get(index) == Some(&true) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text: String = table.lines().map(|line| format!("{}\n", line.trim_end())).collect();
    if text.is_empty() {
        text.push('\n');
    }
    text
}

/// Lines of names and values, the values aligned.
pub(crate) fn fields(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let shown = pairs.iter().filter(|(_, value)| !value.is_empty());
    shown
        .map(|(name, value)| {
            format!(
                "{name:width$}  {}\n",
                value.replace('\n', &format!("\n{:width$}  ", ""))
            )
        })
        .collect()
}

/// A text on one line and not too long, without characters that would move the cursor.
pub(crate) fn one_line(text: &str) -> String {
    const CELL_MAX: usize = 120;
    let mut out: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(CELL_MAX + 1)
        .collect::<String>();
    if out.chars().count() > CELL_MAX {
        out = out.chars().take(CELL_MAX - 1).collect();
        out.push('…');
    }
    out
}

/// A duration as people say it: `0.4s`, `12s`, `3m 5s`, `2h 4m`, `3d 4h`.
pub(crate) fn spoken(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..=9 => format!("{:.1}s", duration.as_secs_f64()),
        10..=59 => format!("{seconds}s"),
        60..=3599 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..=86_399 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// A byte count as people say it.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{count} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// How long ago a time was.
pub(crate) fn age(value: &Value, now: Time) -> String {
    value
        .as_str()
        .and_then(|text| Time::parse(text).ok())
        .map(|at| spoken(now.since(at)))
        .unwrap_or_default()
}

/// The text of a value: of a text the text itself, of nothing nothing.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_short_and_readable() {
        let say = |seconds: f64| spoken(Duration::from_secs_f64(seconds));
        assert_eq!(
            [say(0.25), say(12.0), say(185.0), say(7500.0), say(273_600.0)],
            ["0.2s", "12s", "3m 5s", "2h 5m", "3d 4h"]
        );
    }

    #[test]
    fn a_table_has_aligned_columns_and_no_trailing_space() {
        const COLUMNS: [Column; 3] = [
            Column::text("id", |v, _| plain(&v["id"])),
            Column::number("n", |v, _| plain(&v["n"])),
            Column::text("more", |v, _| plain(&v["more"])).wide(),
        ];
        let items: Vec<Value> = vec![
            serde_json::json!({"id": "a", "n": 5}),
            serde_json::json!({"id": "long\nid", "n": 100, "more": "x"}),
        ];
        let text = table(Format::Table, &COLUMNS, &items, Time::EPOCH);
        assert_eq!(text, "ID         N\na          5\nlong id  100\n");
        assert!(table(Format::Wide, &COLUMNS, &items, Time::EPOCH).contains("MORE"));
    }

    #[test]
    fn json_keeps_the_order_of_its_keys() {
        let text = document(&["{\"z\":1,\"a\":[]}".to_owned()], None).unwrap();
        assert!(text.find("\"z\"").unwrap() < text.find("\"a\"").unwrap());
        assert!(text.ends_with("\"next_cursor\": null\n}"));
        assert_eq!(
            yaml_text("{\"z\":\"1\",\"a\":[1]}").unwrap().lines().next(),
            Some("z: \"1\"")
        );
    }
}

//! Prints lines in columns, and leaves out columns that do not fit the terminal.

use crate::terminal;
use jiff::{Timestamp, tz::TimeZone};

/// How wide the lines may be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Window {
    /// No limit.
    Any,
    /// Drop columns that do not fit, but truncate no value: scripts read it.
    Columns(usize),
    /// Also truncate values: each row stays one line.
    Terminal(usize),
}

/// The width if standard output is no terminal, as in a pipe or with `ssh node unbitctl list`.
const USUAL: usize = 80;

impl Window {
    /// The terminal's, or the usual width where there is none.
    pub fn new(wide: bool) -> Self {
        match terminal::size() {
            _ if wide => Self::Any,
            Some((_, columns)) => Self::Terminal(columns),
            None => Self::Columns(USUAL),
        }
    }

    const fn width(self) -> usize {
        match self {
            Self::Any => usize::MAX,
            Self::Columns(width) | Self::Terminal(width) => width,
        }
    }
}

/// A column: its heading, and how its cells are aligned.
pub struct Column(pub &'static str, pub Align);

/// At which side the cells of a column are aligned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Align {
    Left,
    Right,
}

/// How to shorten a line, in this order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// Leave the column out.
    Drop(&'static str),
    /// Truncate its values, but not below this width.
    Truncate(&'static str, usize),
}

const GAP: &str = "  ";

/// The lines, with their heading. `steps` are taken one after the other until there is room. A
/// column without values in any row is not shown if it is one of `optional`.
pub fn lines(
    columns: &[Column],
    rows: &[Vec<String>],
    optional: &[&str],
    steps: &[Step],
    window: Window,
) -> Vec<String> {
    let mut widths: Vec<usize> = columns.iter().map(|Column(head, _)| head.len()).collect();
    for row in rows {
        widths.iter_mut().zip(row).for_each(|(width, cell)| *width = (*width).max(cell.chars().count()));
    }
    for (at, Column(head, _)) in columns.iter().enumerate().filter(|(_, Column(head, _))| optional.contains(head)) {
        if rows.iter().all(|row| row.get(at).is_none_or(|cell| cell == NOTHING)) {
            drop_column(columns, &mut widths, head);
        }
    }
    let whole = widths.clone();
    for step in steps {
        let shown = widths.iter().filter(|width| **width > 0);
        let needed = shown.map(|width| width + GAP.len()).sum::<usize>().saturating_sub(GAP.len());
        let excess = needed.saturating_sub(window.width());
        match step {
            _ if excess == 0 => break,
            Step::Drop(head) => drop_column(columns, &mut widths, head),
            Step::Truncate(head, least) => {
                let at = columns.iter().position(|Column(name, _)| name == head);
                if let Some(width) = at.and_then(|at| widths.get_mut(at)).filter(|width| **width > *least) {
                    *width = width.saturating_sub(excess).max(*least);
                }
            }
        }
    }
    if !matches!(window, Window::Terminal(_)) {
        widths.iter_mut().zip(&whole).filter(|(width, _)| **width > 0).for_each(|(width, whole)| *width = *whole);
    }
    let heads: Vec<_> = columns.iter().map(|Column(head, _)| (*head).to_owned()).collect();
    let line = |row: &Vec<String>| {
        let line = line(columns, row, &widths, window);
        if let Window::Terminal(width) = window { line.chars().take(width).collect() } else { line }
    };
    std::iter::once(&heads).chain(rows).map(line).collect()
}

/// A text in so much room, with a mark if it is truncated.
pub fn truncate(text: &str, room: usize) -> String {
    const MARK: &str = "...";
    if text.chars().count() <= room {
        return text.to_owned();
    }
    let rest = room.saturating_sub(MARK.len());
    text.chars().take(rest).chain(MARK.chars()).take(room).collect()
}

/// A moment with its year, and without.
pub const DATE: &str = "%Y-%m-%d %H:%M";
pub const DAY: &str = "%m-%d %H:%M";

/// A moment, in local time.
pub fn moment(seconds: u64, zone: &TimeZone, format: &str) -> Option<String> {
    let moment = Timestamp::from_second(seconds.try_into().ok()?).ok()?.to_zoned(zone.clone());
    Some(moment.strftime(format).to_string())
}

/// What stands in a column where there is nothing.
pub const NOTHING: &str = "-";

fn drop_column(columns: &[Column], widths: &mut [usize], head: &str) {
    let column = widths.iter_mut().zip(columns).find(|(_, Column(name, _))| *name == head);
    column.into_iter().for_each(|(width, _)| *width = 0);
}

/// A column of no width is not shown.
fn line(columns: &[Column], row: &[String], widths: &[usize], window: Window) -> String {
    let mut line = String::new();
    for ((cell, width), Column(_, align)) in row.iter().zip(widths).zip(columns).filter(|((_, width), _)| **width > 0) {
        let truncated = matches!(window, Window::Terminal(_)).then(|| truncate(cell, *width));
        let cell = truncated.as_ref().unwrap_or(cell);
        line.push_str(&match align {
            Align::Right => format!("{cell:>width$}{GAP}"),
            Align::Left => format!("{cell:<width$}{GAP}"),
        });
    }
    line.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 4] = [
        Column("UID", Align::Right),
        Column("NAME", Align::Left),
        Column("PID", Align::Right),
        Column("KEY", Align::Left),
    ];
    const STEPS: [Step; 3] = [Step::Drop("PID"), Step::Truncate("NAME", 6), Step::Truncate("KEY", 5)];

    fn shown(rows: &[[&str; 4]], window: Window) -> Vec<String> {
        let rows: Vec<_> = rows.iter().map(|row| row.map(str::to_owned).to_vec()).collect();
        lines(&COLUMNS, &rows, &["NAME"], &STEPS, window)
    }

    #[test]
    fn columns_are_aligned_and_left_out_or_cut_where_there_is_no_room() {
        let rows = [["30001", "a-long-name", "7", "SHA256:abc"], ["16807213", "-", "12345", "-"]];
        let whole = [
            "     UID  NAME           PID  KEY",
            "   30001  a-long-name      7  SHA256:abc",
            "16807213  -            12345  -",
        ];
        assert_eq!(shown(&rows, Window::Any), whole);
        assert_eq!(shown(&rows, Window::Terminal(40)), whole);
        let fewer = ["     UID  NAME         KEY", "   30001  a-long-name  SHA256:abc", "16807213  -            -"];
        assert_eq!(shown(&rows, Window::Terminal(39)), fewer);
        for width in [5, 30, 39] {
            assert_eq!(shown(&rows, Window::Columns(width)), fewer, "what is shown is whole");
        }
        assert_eq!(shown(&rows, Window::Terminal(30))[1], "   30001  a-lon...  SHA256:abc");
        assert_eq!(shown(&rows, Window::Terminal(25))[1], "   30001  a-l...  SHA2...");
        assert_eq!(shown(&rows, Window::Terminal(24))[1], "   30001  a-l...  SHA...");
        assert_eq!(shown(&rows, Window::Terminal(20))[1], "   30001  a-l...  SH");
        assert_eq!(truncate("abcdef", 2), "..");
        assert_eq!(shown(&rows[1..], Window::Any)[0], "     UID    PID  KEY", "a column without values");
    }
}

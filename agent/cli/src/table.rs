//! Tables as kubectl prints them: upper-case headers, columns three spaces apart, nothing drawn.

/// Between columns.
const GAP: &str = "   ";

/// Rows under headers; some columns are for the wide form only.
pub struct Table {
    columns: Vec<(String, bool)>,
    rows: Vec<Vec<String>>,
    /// What is printed in place of no rows.
    empty: &'static str,
}

impl Table {
    /// Columns of every form, then those of the wide form.
    pub fn new(columns: &[&'static str], wide: &[&'static str], empty: &'static str) -> Self {
        let columns = columns.iter().map(|name| (*name, false)).chain(wide.iter().map(|name| (*name, true)));
        let columns = columns.map(|(name, wide)| (name.to_owned(), wide));
        Self { columns: columns.collect(), rows: Vec::new(), empty }
    }

    /// Columns of every form, as the answer names them: `serviceId` is SERVICE-ID.
    pub fn of_fields<'a>(fields: impl Iterator<Item = &'a str>, empty: &'static str) -> Self {
        let mut columns = Vec::new();
        for field in fields {
            let mut name = String::new();
            for letter in field.chars() {
                if letter.is_ascii_uppercase() {
                    name.push('-');
                }
                name.push(letter.to_ascii_uppercase());
            }
            columns.push((name, false));
        }
        Self { columns, rows: Vec::new(), empty }
    }

    /// One cell for each column of both forms.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cells: Vec<String> =
            cells.into_iter().map(|cell| if cell.is_empty() { "-".into() } else { cell }).collect();
        assert_eq!(cells.len(), self.columns.len(), "each column has a cell");
        self.rows.push(cells);
    }

    /// The text, each line ended.
    pub fn render(&self, wide: bool) -> String {
        if self.rows.is_empty() {
            return format!("{}\n", self.empty);
        }
        let shown: Vec<usize> = (0..self.columns.len()).filter(|at| wide || !self.columns[*at].1).collect();
        let headers: Vec<String> = self.columns.iter().map(|(name, _)| name.clone()).collect();
        let lines = || std::iter::once(&headers).chain(&self.rows);
        let width = |at: usize| lines().map(|cells| cells[at].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = shown.iter().map(|at| width(*at)).collect();
        let mut text = String::new();
        for cells in lines() {
            let padded: Vec<String> =
                shown.iter().zip(&widths).map(|(at, width)| format!("{:width$}", cells[*at])).collect();
            text.push_str(padded.join(GAP).trim_end());
            text.push('\n');
        }
        text
    }
}

/// A number of bytes in binary units, to three digits or so.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["B", "KiB", "MiB", "GiB"];
    let mut unit = 0;
    let mut value = count as f64;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 || value >= 100.0 {
        format!("{value:.0} {}", UNITS[unit])
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// A span of time as kubectl shortens it: 45s, 3m10s, 2h5m, 3d4h, 12d.
pub fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    let pair = |large: u64, unit: char, small: u64, small_unit: char| match small {
        0 => format!("{large}{unit}"),
        small => format!("{large}{unit}{small}{small_unit}"),
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => pair(minutes, 'm', seconds % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => pair(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => pair(days, 'd', hours % 24, 'h'),
        _ => format!("{days}d"),
    }
}

/// Items with commas between.
pub fn joined<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

pub fn yes(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

/// The value, or nothing.
pub fn known<T: ToString>(value: Option<T>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(&["NAME", "N"], &["MORE"], "nothing");
        table.row(["a".into(), "1".into(), "x".into()]);
        table.row(["größer".into(), String::new(), "y".into()]);
        assert_eq!(table.render(false), "NAME     N\na        1\ngrößer   -\n");
        assert_eq!(table.render(true), "NAME     N   MORE\na        1   x\ngrößer   -   y\n");
    }

    #[test]
    fn columns_may_be_the_fields_of_the_answer() {
        let mut table = Table::of_fields(["address", "serviceId"].into_iter(), "nothing");
        table.row(["::1".into(), "7".into()]);
        assert_eq!(table.render(false), "ADDRESS   SERVICE-ID\n::1       7\n");
    }

    #[test]
    fn bytes_have_three_digits_or_so() {
        let texts = [0, 1023, 1024, 1536, 100 << 10, 34_567_890, 5 << 40].map(bytes);
        assert_eq!(texts, ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "100 KiB", "33.0 MiB", "5120 GiB"]);
    }

    #[test]
    fn a_table_without_rows_says_so() {
        assert_eq!(Table::new(&["NAME"], &[], "no peers").render(true), "no peers\n");
    }

    #[test]
    fn spans_are_as_long_as_they_are_exact() {
        let texts = [0, 119, 120, 190, 600, 10_799, 10_800, 11_100, 30_000, 200_000, 700_000].map(span);
        assert_eq!(texts, ["0s", "119s", "2m", "3m10s", "10m", "179m", "3h", "3h5m", "8h", "2d7h", "8d"]);
    }
}

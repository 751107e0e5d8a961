//! Tables of text, as wide as what stands in them.

use std::fmt;

/// Where the words of a column stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    Left,
    Right,
}

/// Rows under headings.
#[derive(Debug, Clone)]
pub struct Table {
    columns: Vec<(String, Side)>,
    rows: Vec<Vec<String>>,
    indent: usize,
}

impl Table {
    pub fn new(columns: &[(&str, Side)]) -> Self {
        let columns = columns.iter().map(|(name, side)| ((*name).to_owned(), *side)).collect();
        Self { columns, rows: Vec::new(), indent: 0 }
    }

    /// Blanks before every line.
    pub fn indented(mut self, indent: usize) -> Self {
        self.indent = indent;
        self
    }

    /// Adds a row, a word a column.
    pub fn row(&mut self, words: Vec<String>) {
        self.rows.push(words);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headings: Vec<String> = self.columns.iter().map(|(name, _)| name.clone()).collect();
        let lines: Vec<_> = std::iter::once(&headings).chain(&self.rows).collect();
        let width = |column: usize| {
            lines
                .iter()
                .filter_map(|line| line.get(column))
                .map(|word| word.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        for line in lines {
            let mut text = " ".repeat(self.indent);
            for ((word, (_, side)), width) in line.iter().zip(&self.columns).zip(&widths) {
                match side {
                    Side::Left => text.push_str(&format!("{word:<width$}  ")),
                    Side::Right => text.push_str(&format!("{word:>width$}  ")),
                }
            }
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_word() {
        let mut table = Table::new(&[("name", Side::Left), ("n", Side::Right)]).indented(2);
        table.row(vec!["a".into(), "100".into()]);
        table.row(vec!["longer".into(), "7".into()]);
        assert_eq!(table.to_string(), "  name      n\n  a       100\n  longer    7\n");
    }
}

//! What an operator can paste: SQL, and comments for whatever else there is to say.
//!
//! Names, gids and messages come from other people and other servers. They get into a hint as a
//! quoted [`Literal`] or [`Identifier`], or inside a [`Comment`], and in no other way: text that is
//! none of these does not compile.
//!
//! A hint is pasted as one string, which the server runs as one transaction (`exec_simple_query`,
//! `postgres.c`). A statement that refuses to run in one with others ([`Sql::alone`]) stands alone in
//! its hint.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::observation::{Pid, SlotName};
use super::xid::{Lsn, Xid};

/// A part of a statement.
pub trait Part {
    fn write(&self, sql: &mut String);
}

/// Text of this program's own.
impl Part for &'static str {
    fn write(&self, sql: &mut String) {
        sql.push_str(self);
    }
}

/// Statements, each with its semicolon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sql {
    text: String,
    is_alone: bool,
}

/// Puts statements together: `sql!["SELECT pg_drop_replication_slot(", slot, ");"]`.
macro_rules! sql {
    ($($part:expr),+ $(,)?) => {
        $crate::core::hint::Sql::of(&[$(&$part),+])
    };
}
pub(crate) use sql;

impl Sql {
    pub fn of(parts: &[&dyn Part]) -> Self {
        let mut text = String::new();
        for part in parts {
            part.write(&mut text);
        }
        Self {
            text,
            is_alone: false,
        }
    }

    /// One that can't be run together with others: it would change what no transaction can take
    /// back (`PreventInTransactionBlock`, `xact.c`).
    pub fn alone(self) -> Self {
        Self {
            is_alone: true,
            ..self
        }
    }
}

impl fmt::Display for Sql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text.fmt(f)
    }
}

impl Part for Sql {
    fn write(&self, sql: &mut String) {
        sql.push_str(&self.text);
    }
}

/// A value that anybody may have chosen.
#[derive(Clone, Copy, Debug)]
pub struct Literal<'a>(pub &'a str);

impl Part for Literal<'_> {
    fn write(&self, sql: &mut String) {
        sql.push_str(&quote_literal(self.0));
    }
}

/// A name that anybody may have chosen.
#[derive(Clone, Copy, Debug)]
pub struct Identifier<'a>(pub &'a str);

impl Part for Identifier<'_> {
    fn write(&self, sql: &mut String) {
        sql.push_str(&quote_identifier(self.0));
    }
}

impl Part for SlotName {
    fn write(&self, sql: &mut String) {
        Literal(self.as_str()).write(sql);
    }
}

impl Part for Xid {
    fn write(&self, sql: &mut String) {
        Literal(&self.to_string()).write(sql);
    }
}

impl Part for Lsn {
    fn write(&self, sql: &mut String) {
        Literal(&self.to_string()).write(sql);
    }
}

impl Part for Pid {
    fn write(&self, sql: &mut String) {
        sql.push_str(&self.to_string());
    }
}

impl Part for u64 {
    fn write(&self, sql: &mut String) {
        sql.push_str(&self.to_string());
    }
}

/// A comment of one line, whatever is in its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Comment(String);

/// As `format!`, for a [`Comment`].
macro_rules! comment {
    ($($format:tt)+) => {
        $crate::core::hint::Comment::new(&format!($($format)+))
    };
}
pub(crate) use comment;

impl Comment {
    pub fn new(text: &str) -> Self {
        Self(on_one_line(text))
    }
}

/// Lines that can be pasted as one string.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hint {
    lines: Vec<Line>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Line {
    sql: Option<Sql>,
    comment: Option<Comment>,
}

impl Hint {
    /// With what is to be known before the statement is run.
    pub fn run(sql: Sql, comment: Comment) -> Self {
        Self::of_line(Some(sql), Some(comment))
    }

    /// Where the best that can be done is not SQL, or not to be done here.
    pub fn say(comment: Comment) -> Self {
        Self::of_line(None, Some(comment))
    }

    fn of_line(sql: Option<Sql>, comment: Option<Comment>) -> Self {
        Self {
            lines: vec![Line { sql, comment }],
        }
    }

    /// Another hint after this one, if both can be run as one string. If not, it is left to the
    /// next look, when this one's cause is gone.
    pub fn then(mut self, other: Self) -> Self {
        let conflicts = self.has_sql() && other.has_sql() && (self.is_alone() || other.is_alone());
        if !conflicts {
            self.lines.extend(other.lines);
        }
        self
    }

    fn has_sql(&self) -> bool {
        self.lines.iter().any(|line| line.sql.is_some())
    }

    fn is_alone(&self) -> bool {
        let is_alone = |line: &Line| line.sql.as_ref().is_some_and(|sql| sql.is_alone);
        self.lines.iter().any(is_alone)
    }
}

impl From<Sql> for Hint {
    fn from(sql: Sql) -> Self {
        Self::of_line(Some(sql), None)
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Line { sql, comment }) in self.lines.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            if let Some(sql) = sql {
                write!(f, "{sql}")?;
            }
            if let Some(comment) = comment {
                let space = if sql.is_some() { " " } else { "" };
                write!(f, "{space}-- {}", comment.0)?;
            }
        }
        Ok(())
    }
}

/// Without what would end a comment before its line does, or show it in another order than it is
/// read in: some clients take U+2028 for the end of a line, and marks of direction turn text around.
fn on_one_line(text: &str) -> String {
    let breaks = |character: char| {
        character.is_control()
            || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.replace(breaks, " ")
}

/// As the SQL function of that name.
pub fn quote_literal(text: &str) -> String {
    let doubled = text.replace('\'', "''");
    if text.contains('\\') {
        format!("E'{}'", doubled.replace('\\', "\\\\"))
    } else {
        format!("'{doubled}'")
    }
}

/// As the SQL function `quote_ident`, but that it leaves words alone which are keywords elsewhere
/// than in the place of a name.
fn quote_identifier(name: &str) -> String {
    let is_first = |character: char| character.is_ascii_lowercase() || character == '_';
    let is_plain = name.starts_with(is_first)
        && name
            .chars()
            .all(|character| is_first(character) || character.is_ascii_digit());
    if is_plain && !RESERVED.contains(&name) {
        name.to_owned()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

/// What can't be the name of a role or of a schema without quotes: the words that PostgreSQL 19
/// reserves, for names of types and functions also (`kwlist.h`).
#[rustfmt::skip]
const RESERVED: &[&str] = &[
    "all", "analyse", "analyze", "and", "any", "array", "as", "asc", "asymmetric", "authorization",
    "binary", "both", "case", "cast", "check", "collate", "collation", "column", "concurrently",
    "constraint", "create", "cross", "current_catalog", "current_date", "current_role",
    "current_schema", "current_time", "current_timestamp", "current_user", "default", "deferrable",
    "desc", "distinct", "do", "else", "end", "except", "false", "fetch", "for", "foreign", "freeze",
    "from", "full", "grant", "group", "having", "ilike", "in", "initially", "inner", "intersect",
    "into", "is", "isnull", "join", "lateral", "leading", "left", "like", "limit", "localtime",
    "localtimestamp", "natural", "not", "notnull", "null", "offset", "on", "only", "or",
    "order", "outer", "overlaps", "placing", "primary", "references", "returning", "right", "select",
    "session_user", "similar", "some", "symmetric", "system_user", "table", "tablesample",
    "then", "to", "trailing", "true", "union", "unique", "user", "using", "variadic", "verbose",
    "when", "where", "window", "with",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_quoted() {
        assert_eq!(quote_literal("plain"), "'plain'");
        assert_eq!(quote_literal("it's"), "'it''s'");
        assert_eq!(quote_literal(r"a\b'c"), r"E'a\\b''c'");
    }

    #[test]
    fn identifiers_are_quoted_where_they_must_be() {
        for plain in ["replicator", "public", "a_1", "_x", "slot_self_heal"] {
            assert_eq!(quote_identifier(plain), plain);
        }
        for odd in ["", "1a", "Ops", "a b", "user", "it's", "a\nb", "é", "a;b"] {
            assert_eq!(quote_identifier(odd), format!("\"{odd}\""));
        }
        assert_eq!(quote_identifier("a\"b"), "\"a\"\"b\"");
    }

    #[test]
    fn parts_are_quoted_by_their_kind() {
        let slot = SlotName::new("x");
        let statement = sql![
            "SELECT f(",
            slot,
            ", ",
            Literal("it's"),
            ", ",
            Identifier("A"),
            ");"
        ];
        assert_eq!(
            Hint::from(statement).to_string(),
            "SELECT f('x', 'it''s', \"A\");"
        );
    }

    #[test]
    fn a_comment_ends_with_its_line() {
        let text = "a\nDROP TABLE t;\r\u{2028}b\u{202e}c\0";
        let hint = Hint::run(sql!["SELECT 1;"], comment!("{text}"));
        assert_eq!(hint.to_string(), "SELECT 1; -- a DROP TABLE t;  b c ");
        assert_eq!(Hint::say(comment!("{text}")).to_string().lines().count(), 1);
    }

    #[test]
    fn what_must_stand_alone_does() {
        let plain = |text: &'static str| Hint::from(sql![text]);
        let lonely = || Hint::from(sql!["ROLLBACK PREPARED 'g';"].alone());
        let say = || Hint::say(comment!("more"));
        assert_eq!(plain("A;").then(plain("B;")).to_string(), "A;\nB;");
        assert_eq!(
            plain("A;").then(lonely()).then(plain("B;")).to_string(),
            "A;\nB;"
        );
        assert_eq!(
            lonely().then(plain("B;")).then(say()).to_string(),
            "ROLLBACK PREPARED 'g';\n-- more"
        );
        assert_eq!(say().then(lonely()), say().then(lonely()).then(lonely()));
    }
}

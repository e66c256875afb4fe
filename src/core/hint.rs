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

/// A part of a statement. No string is one: see the end of this file.
pub trait Part {
    fn write(&self, sql: &mut String);
}

/// SQL of this program's own: what [`sql!`] makes of its literals.
#[derive(Clone, Copy, Debug)]
pub struct Text(pub &'static str);

impl Part for Text {
    fn write(&self, sql: &mut String) {
        sql.push_str(self.0);
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
    (@parts [$($done:tt)*]) => {
        $crate::core::hint::Sql::of(&[$($done)*])
    };
    (@parts [$($done:tt)*] $text:literal $(, $($rest:tt)*)?) => {
        $crate::core::hint::sql!(@parts [$($done)* &$crate::core::hint::Text($text),] $($($rest)*)?)
    };
    (@parts [$($done:tt)*] $part:expr $(, $($rest:tt)*)?) => {
        $crate::core::hint::sql!(@parts [$($done)* &$part,] $($($rest)*)?)
    };
    ($($parts:tt)+) => {
        $crate::core::hint::sql!(@parts [] $($parts)+)
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

/// A setting, and the value that ALTER SYSTEM is to give it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    name: String,
    value: String,
    takes_effect: TakesEffect,
}

/// When a setting that ALTER SYSTEM has written is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TakesEffect {
    AtReload,
    AtRestart,
}

/// What is in `postgresql.auto.conf` and not in force.
pub trait Written {
    /// Whether the file gives this setting a value that was never loaded.
    fn awaits_reload(&self, name: &str) -> bool;
    /// Whether the file gives it this value.
    fn has_value(&self, name: &str, value: &str) -> bool;
    /// Why nothing that ALTER SYSTEM writes would have this setting changed.
    fn is_of_no_use_for(&self, name: &str) -> Option<NoUse>;
}

/// Why ALTER SYSTEM does not help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoUse {
    /// What stands on the server's command line counts.
    OnCommandLine,
    /// `allow_alter_system` is off (17 and later).
    NotAllowed,
}

impl Setting {
    pub fn at_reload(name: &'static str, value: impl Into<String>) -> Self {
        Self::new(name, value, TakesEffect::AtReload)
    }

    pub fn at_restart(name: &'static str, value: impl Into<String>) -> Self {
        Self::new(name, value, TakesEffect::AtRestart)
    }

    fn new(name: &'static str, value: impl Into<String>, takes_effect: TakesEffect) -> Self {
        Self {
            name: name.to_owned(),
            value: value.into(),
            takes_effect,
        }
    }

    /// Whether this, or for one that takes effect at a reload any other value, waits for that.
    fn is_written(&self, written: &impl Written) -> bool {
        match self.takes_effect {
            TakesEffect::AtReload => written.awaits_reload(&self.name),
            TakesEffect::AtRestart => written.has_value(&self.name, &self.value),
        }
    }
}

impl Setting {
    fn without_alter_system(&self, no_use: NoUse) -> Comment {
        let Self { name, value, .. } = self;
        let then = match self.takes_effect {
            TakesEffect::AtReload => "SELECT pg_reload_conf();",
            TakesEffect::AtRestart => "restart the server",
        };
        match no_use {
            NoUse::OnCommandLine => comment!(
                "{name} is set on the server's command line, where ALTER SYSTEM does not count: set \
                 it to {value} there, or in whatever starts the server, and restart it"
            ),
            NoUse::NotAllowed => comment!(
                "set {name} to {value} in the server's configuration, as allow_alter_system is off; \
                 then {then}"
            ),
        }
    }
}

impl Part for Setting {
    /// The name is a static text of this program's own.
    fn write(&self, sql: &mut String) {
        sql.push_str("ALTER SYSTEM SET ");
        sql.push_str(&self.name);
        sql.push_str(" = ");
        match self.value.as_str() {
            switch @ ("on" | "off") => sql.push_str(switch),
            value => Literal(value).write(sql),
        }
        sql.push(';');
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
    /// Makes a comment of the line, and of its statement one that may be copied out of it.
    lead: Option<Comment>,
    sql: Option<Sql>,
    /// If the statement is there to set one.
    setting: Option<Setting>,
    comment: Option<Comment>,
}

impl Line {
    fn is_run(&self) -> bool {
        self.sql.is_some() && self.lead.is_none()
    }
}

impl Hint {
    /// With what is to be known before the statement is run.
    pub fn run(sql: Sql, comment: Comment) -> Self {
        Self::of_line(None, Some(sql), Some(comment))
    }

    /// Where the best that can be done is not SQL, or not to be done here.
    pub fn say(comment: Comment) -> Self {
        Self::of_line(None, None, Some(comment))
    }

    /// A statement that is not run where the hint is pasted, but may be copied out of its comment:
    /// one that must be filled in first, or that is one choice of several.
    pub fn offer(lead: Comment, sql: Sql, comment: Comment) -> Self {
        Self::of_line(Some(lead), Some(sql), Some(comment))
    }

    /// Changes a setting, which is two statements, the second with the next look: see
    /// [`Self::given`].
    pub fn set(setting: Setting, comment: Comment) -> Self {
        Self::of_setting(None, setting, comment)
    }

    /// As [`Self::offer`].
    pub fn offer_to_set(lead: Comment, setting: Setting, comment: Comment) -> Self {
        Self::of_setting(Some(lead), setting, comment)
    }

    fn of_setting(lead: Option<Comment>, setting: Setting, Comment(comment): Comment) -> Self {
        let then = match setting.takes_effect {
            TakesEffect::AtReload => "then SELECT pg_reload_conf();",
            TakesEffect::AtRestart => "then restart the server",
        };
        let comment = match comment.as_str() {
            "" => comment!("{then}"),
            comment => comment!("{comment}; {then}"),
        };
        let mut hint = Self::of_line(lead, Some(sql![setting].alone()), Some(comment));
        for line in &mut hint.lines {
            line.setting = Some(setting.clone());
        }
        hint
    }

    fn of_line(lead: Option<Comment>, sql: Option<Sql>, comment: Option<Comment>) -> Self {
        Self {
            lines: vec![Line {
                lead,
                sql,
                setting: None,
                comment: comment.filter(|Comment(text)| !text.is_empty()),
            }],
        }
    }

    /// Whether this and the other can be run as one string.
    pub fn goes_with(&self, other: &Self) -> bool {
        !(self.has_sql() && other.has_sql() && (self.is_alone() || other.is_alone()))
    }

    /// Another hint after this one, if both can be run as one string. If not, it is left to the
    /// next look, when this one's cause is gone.
    pub fn then(mut self, other: Self) -> Self {
        if self.goes_with(&other) {
            for line in other.lines {
                if !self.lines.contains(&line) {
                    self.lines.push(line);
                }
            }
        }
        self
    }

    /// The hint that is left once ALTER SYSTEM was run: to have the setting loaded, which is not to
    /// be forgotten over anything else. Where that would be of no use, it says so instead.
    pub fn given(mut self, written: &impl Written) -> Self {
        for index in 0..self.lines.len() {
            let setting = self.lines.get(index).and_then(|line| line.setting.as_ref());
            let no_use = setting.and_then(|setting| {
                let no_use = written.is_of_no_use_for(&setting.name)?;
                Some(setting.without_alter_system(no_use))
            });
            if let Some(comment) = no_use {
                self.lines.splice(index..=index, Self::say(comment).lines);
            }
        }
        let is_written = |line: &Line| {
            let setting = line.setting.as_ref();
            setting.is_some_and(|setting| setting.is_written(written))
        };
        for index in 0..self.lines.len() {
            let line = self.lines.get_mut(index).filter(|line| is_written(line));
            let Some(Setting {
                name, takes_effect, ..
            }) = line.and_then(|line| line.setting.take())
            else {
                continue;
            };
            match takes_effect {
                TakesEffect::AtReload => {
                    let comment = comment!("loads {name}, as ALTER SYSTEM has set it");
                    return Self::run(sql!["SELECT pg_reload_conf();"], comment);
                }
                TakesEffect::AtRestart => {
                    let comment = comment!("restart the server: ALTER SYSTEM has set {name}");
                    let said = Self::say(comment);
                    self.lines.splice(index..=index, said.lines);
                }
            }
        }
        self
    }

    /// Whether anything is run where it is pasted.
    pub fn has_sql(&self) -> bool {
        self.lines.iter().any(Line::is_run)
    }

    fn is_alone(&self) -> bool {
        let is_alone = |line: &Line| line.sql.as_ref().is_some_and(|sql| sql.is_alone);
        self.lines.iter().filter(|line| line.is_run()).any(is_alone)
    }
}

impl From<Sql> for Hint {
    fn from(sql: Sql) -> Self {
        Self::of_line(None, Some(sql), None)
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, line) in self.lines.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            if let Some(lead) = &line.lead {
                write!(f, "-- {} ", lead.0)?;
            }
            match (&line.lead, &line.sql) {
                // In a comment a literal may not have a second line.
                (Some(_), Some(sql)) => f.write_str(&on_one_line(&sql.text))?,
                (None, Some(sql)) => write!(f, "{sql}")?,
                (_, None) => {}
            }
            if let Some(comment) = &line.comment {
                let space = if line.sql.is_some() { " " } else { "" };
                write!(f, "{space}-- {}", comment.0)?;
            }
        }
        Ok(())
    }
}

/// Without what would end a comment before its line does, or show it in another order than it is
/// read in: some clients take U+2028 for the end of a line, and marks of direction turn text around.
pub fn on_one_line(text: &str) -> String {
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
        let plain = |text| Hint::from(sql![Text(text)]);
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

    struct Auto(&'static str, &'static str);

    impl Written for Auto {
        fn awaits_reload(&self, name: &str) -> bool {
            self.0 == name
        }

        fn has_value(&self, name: &str, value: &str) -> bool {
            (self.0, self.1) == (name, value)
        }

        fn is_of_no_use_for(&self, _: &str) -> Option<NoUse> {
            None
        }
    }

    struct NotWritten(NoUse);

    impl Written for NotWritten {
        fn awaits_reload(&self, _: &str) -> bool {
            true
        }

        fn has_value(&self, _: &str, _: &str) -> bool {
            true
        }

        fn is_of_no_use_for(&self, _: &str) -> Option<NoUse> {
            Some(self.0)
        }
    }

    #[test]
    fn what_alter_system_cannot_change_is_said() {
        let on = || Hint::set(Setting::at_reload("a.enabled", "on"), comment!("why"));
        for no_use in [NoUse::OnCommandLine, NoUse::NotAllowed] {
            let hint = on().given(&NotWritten(no_use));
            assert!(!hint.has_sql());
            assert!(hint.to_string().contains("a.enabled"), "{hint}");
        }
    }

    /// Whoever may create functions in a schema on the path may shadow one of `pg_catalog` whose
    /// arguments have to be converted, or are of any type. Those named `pg_…` take what they are
    /// given here.
    #[test]
    fn functions_that_could_be_shadowed_are_qualified() {
        let sources = [
            include_str!("advice.rs"),
            include_str!("remedy.rs"),
            include_str!("upstream.rs"),
        ];
        let is_of_name = |character: char| character.is_alphanumeric() || "_.".contains(character);
        let statements = sources
            .iter()
            .flat_map(|source| source.split("sql![").skip(1))
            .filter_map(|rest| rest.split(']').next());
        // What stands between quotes.
        let texts = statements.flat_map(|statement| statement.split('"').skip(1).step_by(2));
        for text in texts {
            for (at, _) in text.match_indices('(') {
                let name = text[..at].rsplit(|character| !is_of_name(character)).next();
                let name = name.unwrap_or_default();
                // Of a schema, or of this program's own making before it.
                let is_qualified = name.contains('.') || name.is_empty();
                assert!(
                    is_qualified || name.starts_with("pg_"),
                    "{name}() in {text}"
                );
            }
        }
    }

    #[test]
    fn a_setting_that_is_written_is_to_be_loaded() {
        let end = || Hint::run(sql!["SELECT end();"], comment!("ends it"));
        let on = Setting::at_reload("a.enabled", "on");
        let set = Hint::set(on.clone(), comment!("why"));
        let shown = "ALTER SYSTEM SET a.enabled = on; -- why; then SELECT pg_reload_conf();";
        assert_eq!(set.to_string(), shown);
        assert_eq!(end().then(set.clone()), end());
        assert_eq!(set.clone().given(&Auto("other", "on")), set);
        let load = "SELECT pg_reload_conf(); -- loads a.enabled, as ALTER SYSTEM has set it";
        assert_eq!(set.given(&Auto("a.enabled", "on")).to_string(), load);

        let offered = end().then(Hint::offer_to_set(comment!("or"), on, comment!("")));
        assert_eq!(
            offered.to_string(),
            "SELECT end(); -- ends it\n-- or ALTER SYSTEM SET a.enabled = on; -- then SELECT \
             pg_reload_conf();"
        );
        assert_eq!(offered.given(&Auto("a.enabled", "on")).to_string(), load);

        let level = Hint::set(Setting::at_restart("wal_level", "logical"), comment!("why"));
        let restart = "ALTER SYSTEM SET wal_level = 'logical'; -- why; then restart the server";
        assert_eq!(
            level
                .clone()
                .given(&Auto("wal_level", "replica"))
                .to_string(),
            restart
        );
        assert_eq!(
            level.given(&Auto("wal_level", "logical")).to_string(),
            "-- restart the server: ALTER SYSTEM has set wal_level"
        );
    }

    #[test]
    fn what_is_offered_stays_in_its_comment() {
        let sql = sql!["SELECT f(", Literal("a\nDROP TABLE t;"), ");"];
        let hint = Hint::offer(comment!("or"), sql, comment!("why"));
        assert_eq!(
            hint.to_string(),
            "-- or SELECT f('a DROP TABLE t;'); -- why"
        );
        let plain = Hint::from(sql!["A;"]);
        assert!(plain.goes_with(&hint) && !hint.has_sql());
    }

    /// Text that was not quoted is no part of a statement: each line below stops compiling as soon as
    /// the type in it is a [`Part`], because `_` can be either then.
    const _: () = {
        trait IsNoPart<T> {
            fn check() {}
        }
        impl<T: ?Sized> IsNoPart<()> for T {}
        struct Ambiguous;
        impl<T: ?Sized + Part> IsNoPart<Ambiguous> for T {}

        let _ = <str as IsNoPart<_>>::check;
        let _ = <&'static str as IsNoPart<_>>::check;
        let _ = <String as IsNoPart<_>>::check;
        let _ = <&'static String as IsNoPart<_>>::check;
        let _ = <std::borrow::Cow<'static, str> as IsNoPart<_>>::check;
        let _ = <Comment as IsNoPart<_>>::check;
        let _ = <Hint as IsNoPart<_>>::check;
    };
}

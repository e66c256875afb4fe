//! What is quoted is what the server reads, whatever somebody wrote.

use std::ffi::CString;

use pgrx::datum::DatumWithOid;
use pgrx::pg_sys;
use pgrx::prelude::*;
use pgrx::spi::SpiError;

use crate::core::hint::{Hint, Identifier, Literal, comment, quote_literal, sql};

/// Every character of ASCII but NUL, alone and beside what is special; and what looks special to
/// somebody else.
fn hostile() -> Vec<String> {
    let mut texts: Vec<String> = [
        "",
        "it's",
        "''",
        "'; DROP TABLE t; --",
        r"\'; DROP TABLE t; --",
        r"\\",
        r"\",
        r"a\",
        r"E'\n'",
        "$$ $1 $a$",
        "--\n/*",
        "\r\n",
        "\u{1}\t\u{7f}",
        "\"",
        "\"\"; --",
        "U&\"d\\0061t\"",
        "é ü ß",
        "名前'",
        "𝒳\\",
        "\u{2019}\u{2028}\u{202e}\u{ff07}",
        "%s %I %L",
        "{\"json\": \"it's\"}",
    ]
    .map(str::to_owned)
    .to_vec();
    for byte in 1..=127_u8 {
        let character = char::from(byte);
        for (before, after) in [("", ""), ("'", "'"), (r"\", r"\"), ("a", "b"), ("\"", "\"")] {
            texts.push(format!("{before}{character}{after}"));
        }
    }
    texts
}

/// A query's one value, and the name of its column.
fn read(sql: &str) -> Result<(Option<String>, String), SpiError> {
    Spi::connect(|client| {
        let table = client.select(sql, None, &[])?;
        let name = table.column_name(1)?;
        Ok((table.first().get::<String>(1)?, name))
    })
}

fn ask(sql: &str, text: &str) -> String {
    Spi::connect(|client| {
        client
            .select(sql, None, &[DatumWithOid::from(text)])?
            .first()
            .get(1)
    })
    .expect("a query")
    .expect("a value")
}

fn literals_are_read() {
    for text in hostile() {
        let statement = sql!["SELECT ", Literal(&text)].to_string();
        let (value, _) = read(&statement).unwrap_or_else(|error| panic!("{statement}: {error}"));
        assert_eq!(value.as_deref(), Some(text.as_str()), "{statement}");
    }
}

#[pg_test]
fn a_literal_is_read_as_what_it_was() {
    literals_are_read();
}

/// Until PostgreSQL 18 a session may have backslashes escape in plain literals too.
#[cfg(not(feature = "pg19"))]
#[pg_test]
fn a_literal_is_read_as_what_it_was_where_backslashes_escape() {
    super::settings::set(
        c"standard_conforming_strings",
        "off",
        super::settings::SESSION,
    )
    .expect("it may be switched off");
    // Of the same value, in the other notation.
    assert_eq!(
        read(r"SELECT '\\'").expect("a query").0.as_deref(),
        Some(r"\")
    );
    literals_are_read();
}

#[pg_test]
fn a_literal_is_what_the_server_itself_would_write() {
    for text in hostile() {
        assert_eq!(
            quote_literal(&text),
            ask("SELECT pg_catalog.quote_literal($1)", &text)
        );
        // format() begins with a space where it escapes.
        let formatted = ask("SELECT pg_catalog.format('%L', $1)", &text);
        assert_eq!(quote_literal(&text), formatted.trim_start_matches(' '));
    }
}

#[pg_test]
fn an_identifier_is_read_as_what_it_was() {
    for text in hostile().iter().filter(|text| !text.is_empty()) {
        let statement = sql!["SELECT '1'::text AS ", Identifier(text)].to_string();
        let (_, name) = read(&statement).unwrap_or_else(|error| panic!("{statement}: {error}"));
        assert_eq!(&name, text, "{statement}");
        let theirs = ask("SELECT pg_catalog.quote_ident($1)", text);
        assert_eq!(sql![Identifier(text)].to_string(), theirs);
    }
}

/// Each of this server's keywords, where hints have names: those that are quoted and those that
/// need not be.
#[pg_test]
fn a_keyword_is_quoted_where_the_server_asks_for_it() {
    let words = Spi::connect(|client| {
        let table = client.select("SELECT word FROM pg_get_keywords()", None, &[])?;
        table
            .map(|row| row.get::<String>(1))
            .collect::<Result<Vec<_>, _>>()
    });
    let words: Vec<_> = words.expect("a query").into_iter().flatten().collect();
    assert!(words.len() > 400, "{}", words.len());
    // No role may have that name.
    for word in words.iter().filter(|word| *word != "none") {
        for statement in [
            sql!["ALTER ROLE ", Identifier(word), " RESET ALL;"],
            sql!["SELECT ", Identifier(word), ".f();"],
            sql![
                "GRANT EXECUTE ON FUNCTION ",
                Identifier(word),
                ".f() TO ",
                Identifier(word),
                ";"
            ],
            sql!["DROP SUBSCRIPTION ", Identifier(word), ";"],
        ] {
            let statement = statement.to_string();
            let parsed = super::caught::in_subtransaction(|| statements_in(&statement));
            assert_eq!(parsed, Ok(1), "{statement}");
        }
    }
}

/// How many statements the server's own parser finds.
fn statements_in(text: &str) -> i32 {
    let text = CString::new(text).expect("a text");
    // SAFETY: parses a text, without looking at any catalog.
    unsafe {
        pg_sys::list_length(pg_sys::raw_parser(
            text.as_ptr(),
            pg_sys::RawParseMode::RAW_PARSE_DEFAULT,
        ))
    }
}

#[pg_test]
fn a_comment_holds_no_statement() {
    for text in hostile() {
        let text = format!("a\n{text}\r; DROP TABLE t;");
        let run = Hint::run(sql!["SELECT 1;"], comment!("{text}")).to_string();
        assert_eq!(statements_in(&run), 1, "{run}");
        let say = Hint::say(comment!("{text}")).to_string();
        assert_eq!(statements_in(&say), 0, "{say}");
        let offer = Hint::offer(
            comment!("or {text}"),
            sql!["SELECT ", Literal(&text), ";"],
            comment!("x"),
        );
        assert_eq!(statements_in(&offer.to_string()), 0, "{offer}");
    }
}

/// A name is cut by the server where it has no room, and must not be cut inside its quotes.
#[pg_test]
fn a_name_of_the_greatest_length_is_read_whole() {
    let name = format!("{}\"é", "A".repeat(60));
    assert_eq!(name.len(), 63);
    let statement = format!("SELECT '1'::text AS {}", sql![Identifier(&name)]);
    assert_eq!(read(&statement).expect("a query").1, name);
}

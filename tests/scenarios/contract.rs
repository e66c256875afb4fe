//! Names and types that others rely on.

use crate::{Major, primary};

on_every_major!(
    status_columns,
    worker_columns,
    history_columns,
    functions,
    settings
);

fn columns(major: Major, view: &str) -> String {
    let cluster = primary(major);
    cluster.value(&format!(
        "SELECT string_agg(attname || ' ' || format_type(atttypid, atttypmod), E'\\n' \
                           ORDER BY attnum) \
         FROM pg_attribute WHERE attrelid = '{view}'::regclass AND attnum > 0"
    ))
}

fn status_columns(major: Major) {
    assert_eq!(
        columns(major, "slot_self_heal_status"),
        "slot_name name\n\
         database name\n\
         plugin name\n\
         state text\n\
         state_since timestamp with time zone\n\
         creation_started timestamp with time zone\n\
         creator_pid integer\n\
         creator_type text\n\
         creator_application text\n\
         blockers jsonb\n\
         nudges integer\n\
         last_nudge_at timestamp with time zone\n\
         last_nudge_lsn pg_lsn\n\
         retained_wal bigint\n\
         wal_status text\n\
         safe_wal_size bigint\n\
         detail text\n\
         hint text\n\
         tries integer"
    );
}

fn worker_columns(major: Major) {
    assert_eq!(
        columns(major, "slot_self_heal_worker"),
        "pid integer\n\
         role text\n\
         database name\n\
         started_at timestamp with time zone\n\
         last_scan_at timestamp with time zone\n\
         scans bigint\n\
         nudges bigint\n\
         healed bigint\n\
         cancelled bigint\n\
         upstream text\n\
         last_error text\n\
         last_error_at timestamp with time zone\n\
         hint text"
    );
}

fn history_columns(major: Major) {
    assert_eq!(
        columns(major, "slot_self_heal_history"),
        "slot_name name\n\
         database name\n\
         creator_type text\n\
         creator_application text\n\
         started_at timestamp with time zone\n\
         ended_at timestamp with time zone\n\
         outcome text\n\
         waited_for_transactions interval\n\
         waited_for_record interval\n\
         waited_for_replay interval\n\
         nudges integer\n\
         max_retained_wal bigint\n\
         blockers jsonb\n\
         reason text\n\
         tries integer"
    );
}

fn functions(major: Major) {
    let cluster = primary(major);
    for (name, result) in [
        ("slot_self_heal_nudge()", "pg_lsn"),
        ("slot_self_heal_reset()", "void"),
        ("slot_self_heal_end_blocker(xid, interval)", "record"),
    ] {
        let sql =
            format!("SELECT prorettype::regtype FROM pg_proc WHERE oid = '{name}'::regprocedure");
        assert_eq!(cluster.value(&sql), result);
    }
}

fn settings(major: Major) {
    let cluster = primary(major);
    let found = cluster.rows(
        "SELECT name, current_setting(name), context FROM pg_settings \
         WHERE name LIKE 'slot\\_self\\_heal.%' ORDER BY name",
    );
    let found: Vec<Vec<&str>> = found
        .iter()
        .map(|row| row.iter().map(|value| value.as_deref().unwrap()).collect())
        .collect();
    assert_eq!(
        found,
        [
            ["slot_self_heal.blocker_action", "report", "sighup"],
            ["slot_self_heal.blocker_grace", "5min", "sighup"],
            ["slot_self_heal.blocker_scope", "idle", "sighup"],
            ["slot_self_heal.cancel_abandoned", "on", "sighup"],
            ["slot_self_heal.cancel_blocking_replay", "off", "sighup"],
            ["slot_self_heal.creation_timeout", "0", "superuser"],
            ["slot_self_heal.database", "postgres", "postmaster"],
            ["slot_self_heal.enabled", "on", "sighup"],
            ["slot_self_heal.max_retained_wal", "-1", "superuser"],
            ["slot_self_heal.nudge_interval", "10s", "sighup"],
            ["slot_self_heal.primary_conninfo", "", "sighup"],
            ["slot_self_heal.protected_roles", "", "sighup"],
            ["slot_self_heal.scan_interval", "100ms", "sighup"],
        ]
    );
}

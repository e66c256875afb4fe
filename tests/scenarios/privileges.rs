//! Who may see, and who may act.

use harness::{Cluster, Session};

use crate::{Major, primary};

on_every_major!(ordinary_role, monitor, superuser);

const VIEWS: [&str; 3] = [
    "SELECT * FROM slot_self_heal_status",
    "SELECT * FROM slot_self_heal_worker",
    "SELECT * FROM slot_self_heal_history",
];
const ACTS: [&str; 3] = [
    "SELECT slot_self_heal_nudge()",
    "SELECT slot_self_heal_end_blocker('3', '1h')",
    "SELECT slot_self_heal_reset()",
];

const PERMISSION_DENIED: &str = "42501";

fn role(cluster: &Cluster, grant: &str) -> Session {
    cluster.run("CREATE ROLE somebody LOGIN");
    if !grant.is_empty() {
        cluster.run(&format!("GRANT {grant} TO somebody"));
    }
    cluster.login().role("somebody").connect()
}

fn ordinary_role(major: Major) {
    let cluster = primary(major);
    let mut session = role(&cluster, "");
    for sql in VIEWS.into_iter().chain(ACTS) {
        assert_eq!(session.error(sql).code, PERMISSION_DENIED, "{sql}");
    }
    // nor by the way around the views
    let functions = cluster.rows(
        "SELECT p.oid::regprocedure FROM pg_proc p \
         JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid \
         JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid \
         WHERE e.extname = 'slot_self_heal' \
         AND has_function_privilege('somebody', p.oid, 'EXECUTE')",
    );
    assert!(functions.is_empty(), "{functions:?}");
}

fn monitor(major: Major) {
    let cluster = primary(major);
    let mut session = role(&cluster, "pg_monitor");
    for sql in VIEWS {
        session.run(sql);
    }
    for sql in ACTS {
        assert_eq!(session.error(sql).code, PERMISSION_DENIED, "{sql}");
    }
}

fn superuser(major: Major) {
    let cluster = primary(major);
    let mut session = cluster.connect();
    for sql in VIEWS.into_iter().chain(ACTS) {
        session.run(sql);
    }
}

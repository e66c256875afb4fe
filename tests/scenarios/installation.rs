//! What the README, the samples and `make install` have people type.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use harness::{Cluster, Setup, output_of, without_rights_of_root};

use crate::Major;

on_every_major!(
    by_alter_system,
    by_the_file,
    nothing_beside_it,
    samples,
    files_come_and_go,
    files_that_may_not_be_removed,
);

/// The library that the README takes to be there already. Not every server at
/// hand has it, so a fixture stands for it.
const ANOTHER: &str = "pg_stat_statements";
const OURS: &str = "background_creator";

fn checkout() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests
        .parent()
        .expect("the tests are in a checkout")
        .to_owned()
}

fn text_of(file: &str) -> String {
    let path = checkout().join(file);
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("could not read {}: {e}", path.display()))
}

/// A section of the README, without its heading.
fn section(heading: &str) -> String {
    let readme = text_of("README.md");
    let (_, rest) = readme
        .split_once(&format!("\n## {heading}\n"))
        .unwrap_or_else(|| panic!("README.md has no section {heading}"));
    rest.split("\n## ").next().unwrap_or(rest).to_owned()
}

/// The section's blocks of that language ("" for none), in their order.
#[track_caller]
fn blocks<const N: usize>(section: &str, language: &str) -> [String; N] {
    let blocks: Vec<String> = section
        .split("```")
        .skip(1)
        .step_by(2)
        .filter_map(|block| block.strip_prefix(&format!("{language}\n")))
        .map(str::to_owned)
        .collect();
    blocks
        .try_into()
        .unwrap_or_else(|found| panic!("not {N} blocks \"{language}\" but {found:#?}"))
}

/// What is to be typed on a server that has another library already.
#[track_caller]
fn beside_ours(block: &str) -> String {
    assert!(block.contains(ANOTHER), "{block}");
    block.replace(ANOTHER, OURS)
}

/// A server as it is before the installation.
fn before(major: Major) -> Setup {
    Setup::new(major)
        .without_extension()
        .conf(&format!("shared_preload_libraries = '{OURS}'"))
        .conf("wal_level = replica")
}

#[track_caller]
fn is_installed(cluster: &Cluster, libraries: &str) {
    assert_eq!(cluster.value("SHOW shared_preload_libraries"), libraries);
    assert_eq!(cluster.value("SHOW wal_level"), "logical");
    let worker = cluster.wait_for_worker("a pid", |worker| worker.pid.is_some());
    assert_eq!(worker.hint, None);
}

/// Nothing but LOG since the server was last started. The stop before that ends
/// sessions, and says so.
#[track_caller]
fn started_without_complaint(cluster: &Cluster) {
    let log = cluster.log();
    let start = log.rfind("starting PostgreSQL").expect("it was started");
    for level in ["WARNING:", "ERROR:", "FATAL:", "PANIC:"] {
        assert!(!log[start..].contains(level), "{log}");
    }
}

fn by_alter_system(major: Major) {
    let mut cluster = before(major).start();
    let [set, look] = blocks(&section("Install it on a server"), "sql");
    cluster.paste_into_psql("postgres", &beside_ours(&set));
    cluster.restart();
    cluster.paste_into_psql("postgres", &look);
    is_installed(&cluster, &format!("{OURS}, slot_self_heal"));
    started_without_complaint(&cluster);

    // all that a setting can be stored in, under names that need quotes
    cluster.run("CREATE DATABASE \"Ann's shop\"");
    cluster.run("CREATE ROLE \"The \"\"boss\"\"\"");
    for stored in [
        "ALTER ROLE \"The \"\"boss\"\"\" SET slot_self_heal.creation_timeout = '2h'",
        "ALTER ROLE \"The \"\"boss\"\"\" SET work_mem = '1MB'",
        "ALTER ROLE \"The \"\"boss\"\"\" IN DATABASE \"Ann's shop\" \
         SET slot_self_heal.max_retained_wal = '20GB'",
        "ALTER ROLE ALL SET slot_self_heal.creation_timeout = '3h'",
        "ALTER DATABASE \"Ann's shop\" SET slot_self_heal.max_retained_wal = '30GB'",
        "ALTER DATABASE \"Ann's shop\" SET slot_self_heal.creation_timeout = '4h'",
        "ALTER SYSTEM SET slot_self_heal.protected_roles = 'ops, \"Nightly Batch\"'",
        "ALTER SYSTEM SET slot_self_heal.nudge_interval = '5s'",
    ] {
        cluster.run(stored);
    }
    let [uninstall] = blocks(&section("Uninstall"), "sql");
    cluster.paste_into_psql("postgres", &beside_ours(&uninstall));
    let stored = "SELECT string_agg(array_to_string(setconfig, ','), ',') FROM pg_db_role_setting";
    assert_eq!(cluster.value(stored), "work_mem=1MB");
    let auto_conf = fs::read_to_string(cluster.data().join("postgresql.auto.conf")).unwrap();
    assert!(!auto_conf.contains("slot_self_heal"), "{auto_conf}");

    cluster.restart();
    assert_eq!(cluster.value("SHOW shared_preload_libraries"), OURS);
    let left = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'slot_self_heal'";
    assert_eq!(cluster.number(left), 0);
    let extensions = "SELECT count(*) FROM pg_extension WHERE extname = 'slot_self_heal'";
    assert_eq!(cluster.number(extensions), 0);
    // from now on nobody misses the file
    let mapped = Path::new("/proc").join(cluster.postmaster().to_string());
    let mapped = fs::read_to_string(mapped.join("maps")).unwrap();
    assert!(mapped.contains(OURS), "{mapped}");
    assert!(!mapped.contains("slot_self_heal.so"), "{mapped}");
    started_without_complaint(&cluster);
}

fn by_the_file(major: Major) {
    let install = section("Install it on a server");
    let [_make, lines] = blocks(&install, "");
    let mut setup = before(major);
    for line in beside_ours(&lines).lines() {
        setup = setup.conf(line);
    }
    let cluster = setup.start();
    let [_set, look] = blocks(&install, "sql");
    cluster.paste_into_psql("postgres", &look);
    is_installed(&cluster, &format!("{OURS}, slot_self_heal"));
    started_without_complaint(&cluster);
}

/// The list begins and ends empty.
fn nothing_beside_it(major: Major) {
    let mut cluster = before(major).conf("shared_preload_libraries = ''").start();
    let [set, look] = blocks(&section("Install it on a server"), "sql");
    let alone = set.replace(&format!("= {ANOTHER}, "), "= ");
    assert_ne!(alone, set);
    cluster.paste_into_psql("postgres", &alone);
    cluster.restart();
    cluster.paste_into_psql("postgres", &look);
    is_installed(&cluster, "slot_self_heal");

    let uninstall = section("Uninstall");
    let reset = "ALTER SYSTEM RESET shared_preload_libraries";
    assert!(uninstall.contains(&format!("`{reset}`")), "{uninstall}");
    let [statements] = blocks(&uninstall, "sql");
    let set = format!("ALTER SYSTEM SET shared_preload_libraries = {ANOTHER}");
    assert!(statements.contains(&set), "{statements}");
    cluster.paste_into_psql("postgres", &statements.replace(&set, reset));
    cluster.restart();
    assert_eq!(cluster.value("SHOW shared_preload_libraries"), "");
    started_without_complaint(&cluster);
}

/// `make install` and the samples name the same statements as the README.
#[test]
fn said_alike() {
    let install = section("Install it on a server");
    let [set, look] = blocks::<2>(&install, "sql");
    let [_make, lines] = blocks::<2>(&install, "");
    let printed = text_of("pgrx-config/install");
    let typed = |block: &str| -> Vec<String> {
        block
            .lines()
            .map(|line| line.split("--").next().unwrap_or(line).trim().to_owned())
            .filter(|line| !line.is_empty())
            .collect()
    };
    for line in [typed(&set), typed(&look), typed(&lines)].concat() {
        assert!(printed.contains(&line), "make install does not say {line}");
    }
    for sample in [
        "pgrx-config/postgresql.primary.conf",
        "pgrx-config/postgresql.standby.conf",
    ] {
        let sample = text_of(sample);
        for line in &typed(&set)[..2] {
            assert!(sample.contains(line.as_str()), "{line}: {sample}");
        }
    }
}

/// Every line of a sample, those that it offers in a comment as well: `#name =`,
/// where prose has a space after its sign.
fn with_what_is_offered(sample: &str) -> String {
    let mut text = String::new();
    for line in sample.lines() {
        let offered = line.strip_prefix('#').filter(|line| !line.starts_with(' '));
        text += offered.unwrap_or(line);
        text += "\n";
    }
    text
}

#[track_caller]
fn is_accepted(cluster: &Cluster, sample: &str) {
    let worker = cluster.wait_for_worker("a pid", |worker| worker.pid.is_some());
    assert_eq!(worker.hint, None, "{worker:#?}");
    started_without_complaint(cluster);

    // the file as it would be read anew
    let file = cluster.dir().join("offered.conf");
    let offered = with_what_is_offered(sample);
    assert_ne!(offered, sample);
    fs::write(&file, offered).unwrap();
    let conf = cluster.data().join("postgresql.conf");
    let mut text = fs::read_to_string(&conf).unwrap();
    text += &format!("include = '{}'\n", file.display());
    fs::write(&conf, text).unwrap();
    let from_it = format!(
        "FROM pg_file_settings WHERE sourcefile = '{}'",
        file.display()
    );
    assert!(cluster.number(&format!("SELECT count(*) {from_it}")) > 10);
    let refused = cluster.rows(&format!(
        "SELECT name, setting, error {from_it} AND error <> ''"
    ));
    assert!(refused.is_empty(), "{refused:?}");
}

fn samples(major: Major) {
    let sample = text_of("pgrx-config/postgresql.primary.conf");
    let primary = sample
        .lines()
        .fold(Setup::new(major).without_extension(), Setup::conf)
        .start();
    primary.create_extension();
    is_accepted(&primary, &sample);

    let sample = text_of("pgrx-config/postgresql.standby.conf");
    let standby = sample
        .lines()
        .fold(Setup::new(major).without_extension(), Setup::conf)
        .standby_of(&primary);
    is_accepted(&standby, &sample);
}

/// The server that this suite's build was made for, so that `make install` finds
/// it good and builds nothing.
fn built_for(major: Major) -> String {
    let mut server = Command::new("bash");
    server
        .args(["-c", ". pgrx-config/common.sh && server \"$0\""])
        .arg(major.to_string())
        .current_dir(checkout());
    output_of(server).trim().to_owned()
}

/// As `make install` does, with the build that the tests use.
fn install(pg_config: &str, destination: &Path) {
    let mut install = Command::new(checkout().join("pgrx-config/install"));
    install
        .args(["--debug", pg_config])
        .env("DESTDIR", destination);
    output_of(install);
}

fn uninstall(pg_config: &str, destination: &Path) -> Command {
    let mut make = Command::new("make");
    make.args(["uninstall", &format!("PG_CONFIG={pg_config}")])
        .arg(format!("DESTDIR={}", destination.display()))
        .current_dir(checkout())
        // those of a make test around us
        .env_remove("MAKEFLAGS")
        .env_remove("MAKELEVEL");
    make
}

/// The files under a directory, sorted.
fn files_under(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(files_under(&path)),
            false => files.push(path),
        }
    }
    files.sort();
    files
}

fn files_come_and_go(major: Major) {
    let pg_config = built_for(major);
    let directory = tempfile::tempdir().unwrap();
    install(&pg_config, directory.path());
    let installed = files_under(directory.path());
    assert!(installed.len() >= 3, "{installed:?}");
    let readme = section("Uninstall");
    for file in &installed {
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(readme.contains(&format!("`{name}`")), "{name}: {readme}");
    }

    // another version's, and what others have there
    let [library, control] = [".so", ".control"].map(|end| {
        let is_that = |file: &&PathBuf| file.to_string_lossy().ends_with(end);
        installed.iter().find(is_that).unwrap()
    });
    fs::write(control.with_file_name("slot_self_heal--0.0.9.sql"), "").unwrap();
    let others = [
        control.with_file_name("slot_self_healing.control"),
        control.with_file_name("slot_self_healing--1.0.sql"),
        library.with_file_name("slot_self_healing.so"),
    ];
    for file in &others {
        fs::write(file, "").unwrap();
    }
    let printed = output_of(uninstall(&pg_config, directory.path()));
    for file in &installed {
        assert!(printed.contains(&file.display().to_string()), "{printed}");
    }
    let mut left = others.to_vec();
    left.sort();
    assert_eq!(files_under(directory.path()), left);

    // and once more, where there is nothing
    let printed = output_of(uninstall(&pg_config, directory.path()));
    assert!(printed.contains("is not installed"), "{printed}");
    assert_eq!(files_under(directory.path()), left);
}

fn files_that_may_not_be_removed(major: Major) {
    let pg_config = built_for(major);
    let directory = tempfile::tempdir().unwrap();
    install(&pg_config, directory.path());
    let installed = files_under(directory.path());
    let control = installed
        .iter()
        .find(|file| file.to_string_lossy().ends_with(".control"));
    let shut = control.unwrap().parent().unwrap();
    let open = fs::metadata(shut).unwrap().permissions();
    let mut read_only = open.clone();
    read_only.set_readonly(true);
    fs::set_permissions(shut, read_only).unwrap();
    let mut uninstall = uninstall(&pg_config, directory.path());
    without_rights_of_root(&mut uninstall);
    let refused = uninstall.output().unwrap();
    fs::set_permissions(shut, open).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success(), "{said}");
    assert!(
        said.contains(&format!("{} is not writable", shut.display())),
        "{said}"
    );
    assert!(said.contains("sudo make uninstall PG_CONFIG="), "{said}");
    assert_eq!(files_under(directory.path()), installed);
}

//! One directory for all that this process's servers keep on disk.

use std::{
    env, fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process,
    sync::LazyLock,
};

use crate::process::server_user;

const PREFIX: &str = "slot_self_heal_tests.";

static SCRATCH: LazyLock<PathBuf> = LazyLock::new(|| {
    sweep();
    let path = env::temp_dir().join(format!("{PREFIX}{}", process::id()));
    fs::create_dir(&path).unwrap_or_else(|e| panic!("could not create {}: {e}", path.display()));
    // Postgres insists on 0700 for data directories only; this one is theirs to enter
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    give_to_server(&path);
    // statics are not dropped
    unsafe { libc::atexit(remove_scratch) };
    path
});

/// A new directory that the servers may write to.
pub fn directory(name: &str) -> tempfile::TempDir {
    let dir = tempfile::Builder::new()
        .prefix(&format!("{name}."))
        .tempdir_in(&*SCRATCH)
        .unwrap_or_else(|e| panic!("could not create a directory in {}: {e}", SCRATCH.display()));
    give_to_server(dir.path());
    dir
}

/// A path in the scratch directory that lives as long as the process.
pub fn lasting(name: &str) -> PathBuf {
    SCRATCH.join(name)
}

fn give_to_server(path: &Path) {
    if let Some(user) = server_user() {
        chown(path, Some(user.uid), Some(user.gid))
            .unwrap_or_else(|e| panic!("could not change the owner of {}: {e}", path.display()));
    }
}

extern "C" fn remove_scratch() {
    let _ = fs::remove_dir_all(&*SCRATCH);
}

/// Removes what killed processes left behind.
fn sweep() {
    let Ok(entries) = fs::read_dir(env::temp_dir()) else {
        return;
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else {
            continue;
        };
        if !Path::new("/proc").join(pid).exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

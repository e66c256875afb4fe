//! Processes that end when the scenario does.

use std::{
    fmt, fs, io,
    io::Write,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        LazyLock,
        mpsc::{self, Sender},
    },
    thread,
    time::Duration,
};

use serde::Deserialize;

use crate::wait::{PATIENCE, wait_for};

/// A process id, as in `pg_stat_activity`.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
#[serde(transparent)]
pub struct Pid(pub i32);

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The signals that a scenario sends.
#[derive(Clone, Copy, Debug)]
#[repr(i32)]
pub enum Signal {
    /// Postmaster: fast shutdown. Backend: cancel.
    Int = libc::SIGINT,
    /// Postmaster: immediate shutdown.
    Quit = libc::SIGQUIT,
    Term = libc::SIGTERM,
    Kill = libc::SIGKILL,
    Hup = libc::SIGHUP,
    Stop = libc::SIGSTOP,
    Cont = libc::SIGCONT,
}

impl Pid {
    /// Sends a signal to a process that this scenario started, itself or
    /// through its server. A process that is gone is no error.
    pub fn signal(self, signal: Signal) {
        unsafe { libc::kill(self.0, signal as i32) };
    }

    pub fn is_alive(self) -> bool {
        Path::new("/proc").join(self.to_string()).exists()
    }

    #[track_caller]
    pub fn threads(self) -> usize {
        let path = Path::new("/proc").join(self.to_string()).join("task");
        fs::read_dir(&path)
            .unwrap_or_else(|e| panic!("could not read {}: {e}", path.display()))
            .count()
    }

    /// The processes that it has started and that have not ended.
    pub fn children(self) -> Vec<Pid> {
        let processes = procfs::process::all_processes().into_iter().flatten();
        let stats = processes.filter_map(|process| process.ok()?.stat().ok());
        stats
            .filter(|stat| stat.ppid == self.0)
            .map(|stat| Pid(stat.pid))
            .collect()
    }

    /// Processes of the group that this one leads or led, itself left out.
    pub fn others_of_group(self) -> Vec<Pid> {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.map(Pid)
            .filter(|pid| *pid != self && unsafe { libc::getpgid(pid.0) } == self.0)
            .collect()
    }

    /// The most memory it ever had, shared memory that it touched included, in
    /// bytes.
    #[track_caller]
    pub fn peak_memory(self) -> usize {
        const PEAK: &str = "VmHWM:";
        let path = Path::new("/proc").join(self.to_string()).join("status");
        let status = fs::read_to_string(&path)
            .unwrap_or_else(|e| panic!("could not read {}: {e}", path.display()));
        let kilobytes: Option<usize> = status.lines().find_map(|line| {
            line.strip_prefix(PEAK)?
                .split_whitespace()
                .next()?
                .parse()
                .ok()
        });
        1024 * kilobytes.unwrap_or_else(|| panic!("no {PEAK} in {status}"))
    }
}

/// Whom the servers run as when we are root, which Postgres refuses.
#[derive(Clone, Copy)]
pub struct ServerUser {
    pub uid: u32,
    pub gid: u32,
}

/// User `postgres` when we are root, else nobody else than ourselves.
pub fn server_user() -> Option<ServerUser> {
    static USER: LazyLock<Option<ServerUser>> = LazyLock::new(|| {
        if unsafe { libc::geteuid() } != 0 {
            return None;
        }
        let entry = unsafe { libc::getpwnam(c"postgres".as_ptr()) };
        assert!(
            !entry.is_null(),
            "servers cannot run as root and there is no user \"postgres\"\n\
             HINT: Run \"make test\", which creates it, or run as an ordinary user."
        );
        let (uid, gid) = unsafe { ((*entry).pw_uid, (*entry).pw_gid) };
        Some(ServerUser { uid, gid })
    });
    *USER
}

/// A command that runs as the server's user, and in an environment of which
/// no PGHOST or LC_MESSAGES of ours gets through.
pub fn command(program: &Path) -> Command {
    as_server_user(command_as_ourselves(program))
}

/// The same, but as the user we are.
pub fn command_as_ourselves(program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null());
    command
}

/// After what `command` does before that: [`Command::uid`] would come before
/// all else, and only root may enter a network (`Network::enter`).
pub fn as_server_user(mut command: Command) -> Command {
    if let Some(ServerUser { uid, gid }) = server_user() {
        unsafe {
            command.pre_exec(move || {
                checked(libc::setgroups(0, std::ptr::null()))?;
                checked(libc::setgid(gid))?;
                checked(libc::setuid(uid))
            })
        };
    }
    command
}

/// As `ulimit -s` does, for this command alone.
pub fn limit_stack(command: &mut Command, bytes: u64) {
    let limit = libc::rlimit {
        rlim_cur: bytes,
        rlim_max: bytes,
    };
    unsafe { command.pre_exec(move || checked(libc::setrlimit(libc::RLIMIT_STACK, &limit))) };
}

/// For this command what file modes forbid is forbidden, even where we are root.
pub fn without_rights_of_root(command: &mut Command) {
    /// Not in libc (`linux/capability.h`).
    const CAP_DAC_OVERRIDE: libc::c_ulong = 1;
    if server_user().is_some() {
        unsafe {
            command.pre_exec(|| {
                checked(libc::prctl(
                    libc::PR_CAPBSET_DROP,
                    CAP_DAC_OVERRIDE,
                    0,
                    0,
                    0,
                ))
            })
        };
    }
}

/// What a function of libc returned: -1 for an error.
pub fn checked(result: libc::c_int) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Runs a command to its end and returns what it printed.
#[track_caller]
pub fn output_of(mut command: Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|e| panic!("could not run {command:?}: {e}"));
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{command:?} failed: {}\n{printed}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    printed
}

/// Starts a command that gets `signal` when this process dies, even by
/// SIGKILL.
///
/// The kernel sends that signal when the *thread* that forked ends. A test
/// has a thread of its own, so one thread that lives as long as the process
/// does all the forking.
pub fn spawn(mut command: Command, signal: Signal) -> io::Result<Child> {
    type Birth = (Command, Sender<io::Result<Child>>);
    static NURSERY: LazyLock<Sender<Birth>> = LazyLock::new(|| {
        let (sender, births) = mpsc::channel::<Birth>();
        thread::spawn(move || {
            for (mut command, reply) in births {
                let _ = reply.send(command.spawn());
            }
        });
        sender
    });

    // after the change of user, which would clear it
    unsafe {
        command
            .pre_exec(move || checked(libc::prctl(libc::PR_SET_PDEATHSIG, signal as libc::c_ulong)))
    };
    let (reply, child) = mpsc::channel();
    NURSERY
        .send((command, reply))
        .expect("the nursery lives as long as the process");
    child.recv().expect("the nursery answers")
}

/// A client program at work. Killed on drop.
pub struct Process {
    child: Child,
    name: String,
    printed: PathBuf,
}

impl Process {
    /// Starts `command`; what it prints goes to a file in `dir`.
    pub fn start(mut command: Command, dir: &Path) -> Process {
        let name = Path::new(command.get_program())
            .file_name()
            .map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let file = tempfile::Builder::new()
            .prefix(&format!("{name}."))
            .tempfile_in(dir)
            .and_then(|file| Ok(file.keep()?))
            .unwrap_or_else(|e| panic!("could not create a file in {}: {e}", dir.display()));
        let (file, printed) = file;
        command.stdout(file.try_clone().unwrap()).stderr(file);
        let child =
            spawn(command, Signal::Kill).unwrap_or_else(|e| panic!("could not start {name}: {e}"));
        Process {
            child,
            name,
            printed,
        }
    }

    pub fn pid(&self) -> Pid {
        Pid(self.child.id() as i32)
    }

    /// What it printed so far, to either stream.
    pub fn printed(&self) -> String {
        fs::read(&self.printed)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    pub fn is_finished(&mut self) -> bool {
        self.status().is_some()
    }

    fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Types a line into it; its stdin must be a pipe.
    pub fn type_line(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().expect("stdin is a pipe");
        writeln!(stdin, "{line}").unwrap_or_else(|e| panic!("{} reads no more: {e}", self.name));
    }

    /// Ends its input and waits for it to exit.
    #[track_caller]
    pub fn finish(&mut self) -> ExitStatus {
        drop(self.child.stdin.take());
        let what = format!("{} to exit", self.name);
        wait_for(&what, PATIENCE, || {
            self.status().ok_or_else(|| self.printed())
        })
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Waits for a child to exit.
pub fn exits_within(child: &mut Child, deadline: Duration) -> bool {
    let started = std::time::Instant::now();
    while started.elapsed() < deadline {
        if !matches!(child.try_wait(), Ok(None)) {
            return true;
        }
        thread::sleep(Duration::from_millis(5));
    }
    false
}

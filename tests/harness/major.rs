use std::{env, fmt, path::PathBuf};

/// A Postgres major version the extension is tested on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Major {
    V15,
    V16,
    V18,
}

impl Major {
    pub const ALL: [Major; 3] = [Major::V15, Major::V16, Major::V18];

    pub fn number(self) -> u32 {
        match self {
            Major::V15 => 15,
            Major::V16 => 16,
            Major::V18 => 18,
        }
    }

    /// A program of this major's installation.
    ///
    /// A missing installation is a failure with its remedy, never a skip: a
    /// suite that skips passes on a machine where nothing was tested.
    pub fn program(self, name: &str) -> PathBuf {
        let variable = format!("SLOT_SELF_HEAL_BINDIR_{self}");
        let bindir = env::var_os(&variable).unwrap_or_else(|| {
            panic!(
                "{variable} is not set\n\
                 HINT: Run \"make test\", which sets up the servers, or let it name the bin \
                 directory of a PostgreSQL {self} that has the extension installed."
            )
        });
        let program = PathBuf::from(bindir).join(name);
        assert!(
            program.exists(),
            "{variable} has no program {}\nHINT: Run \"make test\" again.",
            program.display()
        );
        program
    }
}

impl fmt::Display for Major {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number())
    }
}

use std::{env, fmt, path::PathBuf};

macro_rules! majors {
    ($($major:ident = $number:literal if $feature:literal),+ $(,)?) => {
        /// A Postgres major version the extension is tested on.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Major {
            $($major,)+
        }

        impl Major {
            /// Those that were asked for (`MAJORS` of `make test` and `make bench`): what runs here is
            /// built for them.
            pub const ASKED_FOR: &[Major] = &[$(#[cfg(feature = $feature)] Major::$major,)+];

            pub fn number(self) -> u32 {
                match self {
                    $(Major::$major => $number,)+
                }
            }
        }
    };
}

// A new major gets a line here, one in each of `versions`, `Cargo.toml` and `tests/Cargo.toml`, and
// one at the top of the scenarios.
majors! {
    V15 = 15 if "pg15",
    V16 = 16 if "pg16",
    V17 = 17 if "pg17",
    V18 = 18 if "pg18",
    V19 = 19 if "pg19",
}

impl Major {
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

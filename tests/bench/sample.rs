use std::time::Duration;

/// Repetitions of one measurement.
#[derive(Default)]
pub struct Sample(Vec<Duration>);

impl Sample {
    pub fn add(&mut self, measured: Duration) {
        self.0.push(measured);
        self.0.sort();
    }

    /// The smallest value that `percent` of the repetitions do not exceed.
    pub fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0.get(rank - 1).copied().unwrap_or_default()
    }

    pub fn p50(&self) -> Duration {
        self.percentile(50)
    }

    pub fn p95(&self) -> Duration {
        self.percentile(95)
    }
}

impl FromIterator<Duration> for Sample {
    fn from_iter<I: IntoIterator<Item = Duration>>(measured: I) -> Sample {
        let mut measured: Vec<_> = measured.into_iter().collect();
        measured.sort();
        Sample(measured)
    }
}

/// The `n`th of points that cover `whole` ever more closely and evenly, and
/// are in step with no beat: multiples of the golden ratio.
pub fn spread(n: usize, whole: Duration) -> Duration {
    whole.mul_f64((n as f64 * 0.618_033_988_749_895).fract())
}

/// As milliseconds, with a tenth where it matters.
pub fn ms(duration: Duration) -> String {
    let ms = duration.as_secs_f64() * 1e3;
    if ms < 10.0 {
        format!("{ms:.1} ms")
    } else if ms < 1e3 {
        format!("{ms:.0} ms")
    } else {
        format!("{:.1} s", ms / 1e3)
    }
}

pub fn ratio(part: Duration, whole: Duration) -> String {
    format!("{:.2}", part.as_secs_f64() / whole.as_secs_f64())
}

//! How much may be on its way: round-trip times (RFC 6298), and a window in the manner of TCP Westwood
//! (Mascolo et al., 2001) and BBR (draft-ietf-ccwg-bbr).
//!
//! The rate at which data is acknowledged is measured. After a loss a connection goes on with what fits into
//! the path at that rate, where Reno takes half of what it had: losses that come of a bad line, not of a full
//! queue, cost it little. And while that rate still grows, at the start, a few losses say nothing.

use super::Micros;

/// Least time-out (Linux: `TCP_RTO_MIN`; RFC 6298 asks for a second, which is a long time for a reader).
const MIN_RTO: Micros = 200_000;
/// Largest time-out.
const MAX_RTO: Micros = 60_000_000;
/// Until there is a measurement.
const FIRST_RTO: Micros = 1_000_000;
/// A least round-trip time counts for this long.
const MIN_RTT_AGE: Micros = 10_000_000;
/// Segments at first (RFC 6928).
const INITIAL_WINDOW: u32 = 10;
/// And after an ordinary loss at least: fewer give no acknowledgments to find the next loss by.
const LEAST_WINDOW: u32 = 4;

/// Round-trip times of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundTrip {
    smoothed: Micros,
    deviation: Micros,
    least: Micros,
    /// When the least was seen.
    least_at: Micros,
    /// How often the time-out has been doubled.
    backoff: u32,
}

impl RoundTrip {
    /// Notes a measurement.
    pub fn measure(&mut self, rtt: Micros, now: Micros) {
        let rtt = rtt.max(1);
        if self.smoothed == 0 {
            (self.smoothed, self.deviation, self.least, self.least_at) = (rtt, rtt / 2, rtt, now);
        } else {
            let difference = self.smoothed.abs_diff(rtt);
            self.deviation = self.deviation.saturating_mul(3).saturating_add(difference) / 4;
            self.smoothed = self.smoothed.saturating_mul(7).saturating_add(rtt) / 8;
            if rtt <= self.least || now.saturating_sub(self.least_at) > MIN_RTT_AGE {
                (self.least, self.least_at) = (rtt, now);
            }
        }
        self.backoff = 0;
    }

    /// The smoothed time; 0 before the first measurement.
    pub fn smoothed(&self) -> Micros {
        self.smoothed
    }

    /// The least time of late; 0 before the first measurement.
    pub fn least(&self) -> Micros {
        self.least
    }

    /// After which time what was sent is taken for lost.
    pub fn time_out(&self) -> Micros {
        let once = match self.smoothed {
            0 => FIRST_RTO,
            smoothed => smoothed.saturating_add(self.deviation.saturating_mul(4)).max(MIN_RTO),
        };
        once.saturating_mul(1 << self.backoff.min(16)).min(MAX_RTO)
    }

    /// Waits twice as long from now on, until the next measurement.
    pub fn back_off(&mut self) {
        self.backoff = self.backoff.saturating_add(1);
    }

    /// How often in a row it has waited in vain.
    pub fn backoffs(&self) -> u32 {
        self.backoff
    }

    /// The peer is there: the time-out is what it was.
    pub fn reset(&mut self) {
        self.backoff = 0;
    }
}

/// So many measurements of the rate count: the largest of them (BBR, 2.10: BBR.MaxBwFilterLen, in rounds).
const RATES: usize = 10;
/// A rate is measured over at least this time.
const LEAST_ROUND: Micros = 20_000;
/// At the start, of so many bytes one may be lost.
const FEW: u32 = 6;

/// The congestion window, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Congestion {
    window: u32,
    threshold: u32,
    /// Acknowledged since the window last grew, while it grows slowly.
    counted: u32,
    /// Bytes per second, the latest first.
    rates: [u64; RATES],
    /// Acknowledged since `since`.
    acknowledged: u64,
    since: Micros,
}

impl Congestion {
    /// For segments of `mss` bytes.
    pub fn new(mss: u16, now: Micros) -> Self {
        let window = u32::from(mss).saturating_mul(INITIAL_WINDOW);
        Self { window, threshold: u32::MAX, counted: 0, rates: [0; RATES], acknowledged: 0, since: now }
    }

    /// How many bytes may be on their way.
    pub fn window(&self) -> u32 {
        self.window
    }

    /// Whether the window grows with each acknowledgment.
    pub fn is_starting(&self) -> bool {
        self.window < self.threshold
    }

    /// So many bytes have arrived. `was_full`: the window was what held more of them back (RFC 7661).
    pub fn acknowledged(&mut self, bytes: u32, mss: u16, was_full: bool, rtt: &RoundTrip, now: Micros) {
        self.measure_rate(bytes, rtt, now);
        if !was_full {
            return;
        }
        if self.is_starting() {
            // Slow start (RFC 5681, 3.1), by bytes (RFC 3465) since we send what we are asked for.
            self.window = self.window.saturating_add(bytes).min(self.threshold.max(self.window));
            return;
        }
        self.counted = self.counted.saturating_add(bytes);
        if self.counted >= self.window {
            self.counted = self.counted.saturating_sub(self.window);
            self.window = self.window.saturating_add(u32::from(mss));
        }
    }

    /// The rate over about a round trip.
    fn measure_rate(&mut self, bytes: u32, rtt: &RoundTrip, now: Micros) {
        self.acknowledged = self.acknowledged.saturating_add(u64::from(bytes));
        let time = now.saturating_sub(self.since);
        if rtt.smoothed() == 0 || time < rtt.smoothed().max(LEAST_ROUND) {
            return;
        }
        self.rates.rotate_right(1);
        self.rates[0] = self.acknowledged.saturating_mul(1_000_000).checked_div(time).unwrap_or(0);
        (self.acknowledged, self.since) = (0, now);
    }

    /// What fits into the path at the largest rate of late; 0 before there is one.
    fn product(&self, rtt: &RoundTrip) -> u32 {
        let rate = self.rates.into_iter().max().unwrap_or(0);
        u32::try_from(rate.saturating_mul(rtt.least()) / 1_000_000).unwrap_or(u32::MAX)
    }

    /// Something was lost, for the first time in this window.
    pub fn lost(&mut self, mss: u16, rtt: &RoundTrip) {
        if self.threshold < u32::MAX {
            self.settle(mss, rtt);
        }
    }

    /// All of a window has arrived at last, of which `lost` bytes did so only later.
    pub fn recovered(&mut self, lost: u32, mss: u16, rtt: &RoundTrip) {
        if self.threshold == u32::MAX && lost.saturating_mul(FEW) > self.window {
            self.settle(mss, rtt);
        }
    }

    /// Goes on with what fits into the path.
    fn settle(&mut self, mss: u16, rtt: &RoundTrip) {
        let least = u32::from(mss).saturating_mul(LEAST_WINDOW);
        // Before there is a rate: half, as Reno.
        let fits = Some(self.product(rtt)).filter(|fits| *fits > 0).unwrap_or(self.window / 2);
        self.threshold = fits.min(self.window).max(least);
        self.window = self.threshold;
    }

    /// Nothing was heard for the whole time-out.
    pub fn timed_out(&mut self, mss: u16, rtt: &RoundTrip) {
        self.settle(mss, rtt);
        self.window = u32::from(mss).saturating_mul(2);
        self.counted = 0;
    }

    /// Nothing was sent for a while: what was learnt of the path is old (RFC 5681, 4.1).
    pub fn restart(&mut self, mss: u16, now: Micros) {
        let initial = u32::from(mss).saturating_mul(INITIAL_WINDOW);
        self.window = self.window.min(initial);
        (self.acknowledged, self.since) = (0, now);
    }
}

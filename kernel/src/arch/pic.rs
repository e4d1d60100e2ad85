//! The two 8259 interrupt controllers of a PC, which carry the PCI INTx lines.
//!
//! Lines are level-triggered and shared: a line is masked when it fires, and unmasked by whoever has served
//! its device and waits again ([`crate::interrupts`]). A line that nobody waits for fires once at most.

use spin::Mutex;
use x86_64::instructions::interrupts::without_interrupts;
use x86_64::instructions::port::Port;

/// Vector of line 0; the other 15 follow.
pub const FIRST_VECTOR: u8 = 0x20;
/// Lines of both controllers.
pub const LINES: u8 = 16;
/// The line of the first controller that the second one is attached to.
const CASCADE: u8 = 2;

/// Where the lines' levels count: a port for each controller.
const EDGE_LEVEL: u16 = 0x4d0;

const END_OF_INTERRUPT: u8 = 0x20;
const READ_IN_SERVICE: u8 = 0x0b;

struct Chip {
    command: Port<u8>,
    data: Port<u8>,
}

impl Chip {
    const fn new(base: u16) -> Self {
        Self { command: Port::new(base), data: Port::new(base + 1) }
    }

    /// Initializes the chip with its first vector and its place in the cascade, every line masked.
    fn init(&mut self, vector: u8, cascade: u8) {
        // SAFETY: the ports are the controllers' on every PC; with every line masked nothing can fire.
        unsafe {
            // ICW1: edge by default (the ELCR decides per line), cascaded, ICW4 follows.
            self.command.write(0x11);
            self.data.write(vector);
            self.data.write(cascade);
            // ICW4: 8086 mode, end of interrupt by command.
            self.data.write(0x01);
            self.data.write(0xff);
        }
    }

    fn set_masked(&mut self, line: u8, masked: bool) {
        // SAFETY: a line is unmasked only when there is a handler, which there is for every vector.
        unsafe {
            let mask = self.data.read();
            self.data.write(if masked { mask | 1 << line } else { mask & !(1 << line) });
        }
    }

    fn in_service(&mut self, line: u8) -> bool {
        // SAFETY: reads a status register.
        unsafe {
            self.command.write(READ_IN_SERVICE);
            self.command.read() & 1 << line != 0
        }
    }

    fn end_of_interrupt(&mut self) {
        // SAFETY: tells the chip that the line in service has been handled.
        unsafe { self.command.write(END_OF_INTERRUPT) };
    }
}

static CHIPS: Mutex<[Chip; 2]> = Mutex::new([Chip::new(0x20), Chip::new(0xa0)]);

/// Takes both controllers over from the firmware, every line masked but the cascade.
pub fn init() {
    without_interrupts(|| {
        let [first, second] = &mut *CHIPS.lock();
        first.init(FIRST_VECTOR, 1 << CASCADE);
        second.init(FIRST_VECTOR + 8, CASCADE);
        first.set_masked(CASCADE, false);
    });
}

/// Has the level of `line` count, not its edge, as registers say that come with every chipset for PCI (ELCR).
/// `false` if the line cannot do that.
pub fn set_level(line: u8) -> bool {
    if line >= LINES {
        return false;
    }
    let mut levels = Port::<u8>::new(EDGE_LEVEL + u16::from(line / 8));
    let bit = 1 << (line % 8);
    without_interrupts(|| {
        // SAFETY: the ports are the controllers', and a line whose level counts is masked when it fires. What
        // belongs to the timer and the keyboard keeps its edge: the bits are not there.
        unsafe {
            let now = levels.read();
            levels.write(now | bit);
            levels.read() & bit != 0
        }
    })
}

/// Lets `line` interrupt again. Lines that do not exist are ignored.
pub fn unmask(line: u8) {
    without_interrupts(|| {
        if let Some(chip) = CHIPS.lock().get_mut(usize::from(line / 8)) {
            chip.set_masked(line % 8, false);
        }
    });
}

/// Called for each interrupt of a line: masks and acknowledges it. False if it was spurious.
pub(crate) fn acknowledge(line: u8) -> bool {
    let [first, second] = &mut *CHIPS.lock();
    let genuine = if line < 8 { first.in_service(line) } else { second.in_service(line - 8) };
    match (line < 8, genuine) {
        (true, true) => {
            first.set_masked(line, true);
            first.end_of_interrupt();
        }
        (true, false) => {}
        (false, true) => {
            second.set_masked(line - 8, true);
            second.end_of_interrupt();
            first.end_of_interrupt();
        }
        // The first controller did see an interrupt: that of the second one.
        (false, false) => first.end_of_interrupt(),
    }
    genuine
}

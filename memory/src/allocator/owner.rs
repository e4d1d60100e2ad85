//! Who has a frame, and the names of these.

use core::fmt;

macro_rules! owners {
    ($($(#[$doc:meta])* $owner:ident = $name:literal,)*) => {
        /// Who has a frame. Each frame of RAM has one owner at any time.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Owner { $($(#[$doc])* $owner,)* }

        impl Owner {
            /// Every owner.
            pub const ALL: [Self; [$($name),*].len()] = [$(Self::$owner),*];

            /// A lower-case name.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$owner => $name,)* }
            }
        }
    };
}

owners! {
    /// The allocator.
    Free = "free",
    /// A token that is not mapped; or a `MappedPages<Dma>`, the rest of its block.
    Allocated = "allocated",
    /// A `MappedPages<Private>`.
    Private = "private",
    /// Between unmapping and the TLB flush.
    Unmapped = "unmapped",
    /// The DMA arena, not lent.
    DmaIdle = "dma_idle",
    /// A `MappedPages<Dma>`.
    Dma = "dma",
    /// No driver: a device may still write there.
    Quarantined = "quarantined",
    /// The pool of page tables.
    Tables = "tables",
    /// Mapped before there was an allocator: kernel image, boot stack, the allocators' own storage.
    Kernel = "kernel",
    /// Firmware or the loader.
    Reserved = "reserved",
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

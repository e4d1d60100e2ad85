//! Platforms that are the host's but for something.

/// In an `impl Platform`, the functions that are the host's, which is in this field.
#[macro_export]
macro_rules! host_does {
    ($host:tt: $($function:ident),+) => { $($crate::host_does!(@$function $host);)+ };
    (@dma_allocate $host:tt) => {
        fn dma_allocate(
            &self,
            device: ::ringfence_memory::DeviceId,
            pages: ::core::num::NonZeroUsize,
            direction: ::ringfence_memory::Direction,
        ) -> Result<::ringfence_memory::DmaMemory, ::ringfence_memory::PlatformError> {
            self.$host.dma_allocate(device, pages, direction)
        }
    };
    (@mmio_map $host:tt) => {
        fn mmio_map(
            &self,
            device: Option<::ringfence_memory::DeviceId>,
            start: ::ringfence_memory::PhysAddr,
            len: usize,
        ) -> Result<::ringfence_memory::MmioMemory, ::ringfence_memory::PlatformError> {
            self.$host.mmio_map(device, start, len)
        }
    };
    (@now $host:tt) => {
        fn now(&self) -> ::core::time::Duration {
            self.$host.now()
        }
    };
    (@registry $host:tt) => {
        fn registry(&self) -> &::ringfence_memory::DmaRegistry {
            self.$host.registry()
        }
    };
}

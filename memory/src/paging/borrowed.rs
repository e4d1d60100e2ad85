//! A value or slice together with the mapping it lies in.

use super::mapped_pages::{AccessError, MappedPages, Private};
use alloc::sync::Arc;
use core::borrow::Borrow;
use core::cmp::Ordering;
use core::fmt;
use core::hash::{Hash, Hasher};
use core::marker::PhantomData;
use core::ops::{Deref, DerefMut};
use core::ptr::NonNull;
use zerocopy::{FromBytes, IntoBytes, KnownLayout};

mod sealed {
    /// Always names the same mapping, however it is moved.
    pub trait PagesOwner {
        fn pages(&self) -> &super::MappedPages<super::Private>;
    }
    pub trait Mutability {}
}

/// What may hold the mapping: itself, a reference to it, or an `Arc`. Closed, since the view relies on the
/// mapping never being exchanged.
pub trait PagesOwner: sealed::PagesOwner {}
impl<B: sealed::PagesOwner> PagesOwner for B {}

impl sealed::PagesOwner for MappedPages<Private> {
    fn pages(&self) -> &Self {
        self
    }
}

impl sealed::PagesOwner for &MappedPages<Private> {
    fn pages(&self) -> &MappedPages<Private> {
        self
    }
}

impl sealed::PagesOwner for Arc<MappedPages<Private>> {
    fn pages(&self) -> &MappedPages<Private> {
        self
    }
}

/// [`Immutable`] or [`Mutable`].
pub trait Mutability: sealed::Mutability {}
impl<M: sealed::Mutability> Mutability for M {}

/// The view is read only.
#[derive(Debug)]
pub enum Immutable {}
/// The view may be changed.
#[derive(Debug)]
pub enum Mutable {}
impl sealed::Mutability for Immutable {}
impl sealed::Mutability for Mutable {}

/// A `T` in mapped memory, and the mapping (or a share in it) that keeps it there.
pub struct BorrowedMappedPages<T: ?Sized, M: Mutability = Immutable, B: PagesOwner = MappedPages<Private>> {
    /// Points into the mapped memory, not into `owner`, so that moving this value leaves it valid.
    value: NonNull<T>,
    owner: B,
    mutability: PhantomData<M>,
}

/// As [`BorrowedMappedPages`], of a slice.
pub type BorrowedSliceMappedPages<T, M = Immutable, B = MappedPages<Private>> =
    BorrowedMappedPages<[T], M, B>;

// SAFETY: it is used like the `T` itself, with its owner.
unsafe impl<T: ?Sized + Send + Sync, M: Mutability, B: PagesOwner + Send> Send
    for BorrowedMappedPages<T, M, B>
{
}
// SAFETY: a shared reference to it gives a shared reference to the `T` and to the owner, no more.
unsafe impl<T: ?Sized + Sync, M: Mutability, B: PagesOwner + Sync> Sync for BorrowedMappedPages<T, M, B> {}

impl<T: FromBytes + zerocopy::Immutable + KnownLayout, B: PagesOwner> BorrowedMappedPages<T, Immutable, B> {
    /// The `T` at `offset` (in bytes). Gives the mapping back on error.
    pub fn from(owner: B, offset: usize) -> Result<Self, (B, AccessError)> {
        let value = owner.pages().as_type::<T>(offset).map(NonNull::from);
        Self::with(owner, value)
    }
}

impl<T: FromBytes + IntoBytes + zerocopy::Immutable + KnownLayout> BorrowedMappedPages<T, Mutable> {
    /// The `T` at `offset` (in bytes), to be changed. Gives the mapping back on error.
    pub fn from_mut(
        mut owner: MappedPages<Private>,
        offset: usize,
    ) -> Result<Self, (MappedPages<Private>, AccessError)> {
        let value = owner.as_type_mut::<T>(offset).map(NonNull::from);
        Self::with(owner, value)
    }
}

impl<T: FromBytes + zerocopy::Immutable, B: PagesOwner> BorrowedMappedPages<[T], Immutable, B> {
    /// `length` elements from `offset` (in bytes) on. Gives the mapping back on error.
    pub fn from(owner: B, offset: usize, length: usize) -> Result<Self, (B, AccessError)> {
        let value = owner.pages().as_slice::<T>(offset, length).map(NonNull::from);
        Self::with(owner, value)
    }
}

impl<T: FromBytes + IntoBytes + zerocopy::Immutable> BorrowedMappedPages<[T], Mutable> {
    /// `length` elements from `offset` (in bytes) on, to be changed. Gives the mapping back on error.
    pub fn from_mut(
        mut owner: MappedPages<Private>,
        offset: usize,
        length: usize,
    ) -> Result<Self, (MappedPages<Private>, AccessError)> {
        let value = owner.as_slice_mut::<T>(offset, length).map(NonNull::from);
        Self::with(owner, value)
    }
}

impl<T: ?Sized, M: Mutability, B: PagesOwner> BorrowedMappedPages<T, M, B> {
    fn with(owner: B, value: Result<NonNull<T>, AccessError>) -> Result<Self, (B, AccessError)> {
        match value {
            Ok(value) => Ok(Self { value, owner, mutability: PhantomData }),
            Err(error) => Err((owner, error)),
        }
    }

    /// The mapping, without the view.
    pub fn into_inner(self) -> B {
        self.owner
    }
}

impl<T: ?Sized, B: PagesOwner> BorrowedMappedPages<T, Immutable, B> {
    /// The mapping, while the view exists: it can be read, but not remapped or split. A [`Mutable`] view has
    /// no such access, since it alone refers to its bytes.
    pub const fn inner_ref(&self) -> &B {
        &self.owner
    }
}

impl<T: ?Sized, M: Mutability, B: PagesOwner> Deref for BorrowedMappedPages<T, M, B> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: `as_type` or `as_slice` made this reference from the mapping, which `owner` keeps mapped.
        // Whoever else reaches `owner` does so by shared reference, which gives `Immutable` types only; a
        // `Mutable` view owns it and gives no reference to it, and its `T` is `Immutable` as well. So the
        // bytes change through `deref_mut` only.
        unsafe { self.value.as_ref() }
    }
}

impl<T: ?Sized> DerefMut for BorrowedMappedPages<T, Mutable> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as above, and `&mut self` excludes every other reference.
        unsafe { self.value.as_mut() }
    }
}

impl<T: ?Sized, M: Mutability, B: PagesOwner> AsRef<T> for BorrowedMappedPages<T, M, B> {
    fn as_ref(&self) -> &T {
        self
    }
}

impl<T: ?Sized> AsMut<T> for BorrowedMappedPages<T, Mutable> {
    fn as_mut(&mut self) -> &mut T {
        self
    }
}

impl<T: ?Sized, M: Mutability, B: PagesOwner> Borrow<T> for BorrowedMappedPages<T, M, B> {
    fn borrow(&self) -> &T {
        self
    }
}

impl<T: ?Sized + PartialEq, M: Mutability, B: PagesOwner> PartialEq for BorrowedMappedPages<T, M, B> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: ?Sized + Eq, M: Mutability, B: PagesOwner> Eq for BorrowedMappedPages<T, M, B> {}

impl<T: ?Sized + PartialOrd, M: Mutability, B: PagesOwner> PartialOrd for BorrowedMappedPages<T, M, B> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        (**self).partial_cmp(&**other)
    }
}

impl<T: ?Sized + Ord, M: Mutability, B: PagesOwner> Ord for BorrowedMappedPages<T, M, B> {
    fn cmp(&self, other: &Self) -> Ordering {
        (**self).cmp(&**other)
    }
}

impl<T: ?Sized + Hash, M: Mutability, B: PagesOwner> Hash for BorrowedMappedPages<T, M, B> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (**self).hash(state)
    }
}

impl<T: ?Sized + fmt::Debug, M: Mutability, B: PagesOwner> fmt::Debug for BorrowedMappedPages<T, M, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl MappedPages<Private> {
    /// Moves the mapping into a value that derefs to the `T` at `offset`. Gives it back on error.
    pub fn into_borrowed<T: FromBytes + zerocopy::Immutable + KnownLayout>(
        self,
        offset: usize,
    ) -> Result<BorrowedMappedPages<T, Immutable>, (Self, AccessError)> {
        BorrowedMappedPages::<T>::from(self, offset)
    }

    /// As [`into_borrowed`](Self::into_borrowed), to be changed.
    pub fn into_borrowed_mut<T: FromBytes + IntoBytes + zerocopy::Immutable + KnownLayout>(
        self,
        offset: usize,
    ) -> Result<BorrowedMappedPages<T, Mutable>, (Self, AccessError)> {
        BorrowedMappedPages::<T, Mutable>::from_mut(self, offset)
    }

    /// Moves the mapping into a value that derefs to `length` elements from `offset` (in bytes) on. Gives it
    /// back on error.
    pub fn into_borrowed_slice<T: FromBytes + zerocopy::Immutable>(
        self,
        offset: usize,
        length: usize,
    ) -> Result<BorrowedSliceMappedPages<T, Immutable>, (Self, AccessError)> {
        BorrowedSliceMappedPages::from(self, offset, length)
    }

    /// As [`into_borrowed_slice`](Self::into_borrowed_slice), to be changed.
    pub fn into_borrowed_slice_mut<T: FromBytes + IntoBytes + zerocopy::Immutable>(
        self,
        offset: usize,
        length: usize,
    ) -> Result<BorrowedSliceMappedPages<T, Mutable>, (Self, AccessError)> {
        BorrowedSliceMappedPages::from_mut(self, offset, length)
    }
}

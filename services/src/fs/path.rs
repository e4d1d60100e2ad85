//! From a path to what it names.

use super::find::Budget;
use super::inode::{Content, Kind, Node, ROOT_INODE};
use super::{FileSystem, FsError, PATH_MAX, corrupt, zeroed};
use crate::block::BlockSource;
use crate::text;
use alloc::vec::Vec;

/// Symbolic links followed in one look-up, as in Linux.
const MAX_LINKS: usize = 40;
/// Names looked up in one look-up, those in links included.
const MAX_STEPS: usize = 4096;

impl<B: BlockSource> FileSystem<B> {
    /// What a path names. It starts at the root folder, with or without a leading `/`; empty names and `.`
    /// are skipped, `..` never leaves the root, and symbolic links are followed, an absolute one from the
    /// root folder. Permissions are not looked at.
    ///
    /// # Errors
    /// [`FsError::NotFound`], [`FsError::NotADirectory`] (also for `file/`), [`FsError::TooManyLinks`],
    /// [`FsError::NameTooLong`] (a name of more than 255 bytes, or a path of more than 4096),
    /// [`FsError::TooMuch`], and what reading the folders gives.
    pub async fn lookup(&self, path: &[u8]) -> Result<Node, FsError> {
        if let Some(found) = self.paths.borrow_mut().get(path) {
            return found;
        }
        let found = self.walk(path).await;
        self.paths.borrow_mut().put(path, &found);
        found
    }

    async fn walk(&self, path: &[u8]) -> Result<Node, FsError> {
        if path.len() > PATH_MAX {
            return Err(FsError::NameTooLong);
        }
        let mut node = self.node(ROOT_INODE).await?;
        // The folders above `node`: where `..` leads to, without trusting the disk.
        let mut above: Vec<u32> = Vec::new();
        let mut links = 0usize;
        let budget = Budget::default();
        let (mut path, mut at) = (text::bytes(path)?, 0usize);
        for _ in 0..MAX_STEPS {
            let left = path.get(at..).unwrap_or_default();
            if left.is_empty() {
                return Ok(node);
            }
            let name = left.split(|&byte| byte == b'/').next().unwrap_or_default();
            let end = at.saturating_add(name.len());
            at = end.saturating_add(1);
            match name {
                b"" | b"." => continue,
                b".." => {
                    node = self.node(above.pop().unwrap_or(ROOT_INODE)).await?;
                    continue;
                }
                _ => {}
            }
            let child = self.node(self.find(&node, name, &budget).await?).await?;
            if child.metadata().kind == Kind::Symlink {
                links = links.saturating_add(1);
                if links > MAX_LINKS {
                    return Err(FsError::TooManyLinks);
                }
                let mut target = self.read_link(&child).await?;
                let rest = path.get(end..).unwrap_or_default();
                if target.len().saturating_add(rest.len()) > PATH_MAX {
                    return Err(FsError::NameTooLong);
                }
                target.try_reserve_exact(rest.len()).map_err(|_| FsError::NoMemory)?;
                target.extend_from_slice(rest);
                if target.starts_with(b"/") {
                    above.clear();
                    node = self.node(ROOT_INODE).await?;
                }
                (path, at) = (target, 0);
            } else if child.metadata().kind != Kind::Directory && end < path.len() {
                return Err(FsError::NotADirectory);
            } else {
                above.try_reserve(1).map_err(|_| FsError::NoMemory)?;
                above.push(node.metadata().inode);
                node = child;
            }
        }
        Err(FsError::NameTooLong)
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// [`FsError::Corrupt`] if it is empty or has a NUL, and what reading gives.
    pub async fn read_link(&self, node: &Node) -> Result<Vec<u8>, FsError> {
        let target = match &node.content {
            _ if node.metadata().kind != Kind::Symlink => return Err(FsError::NotFound),
            Content::Inline(data) => text::bytes(data)?,
            _ => {
                // `Node::parse` has bounded the size.
                let mut target = zeroed(node.metadata().size as usize)?;
                self.read_content(node, 0, &mut target).await?;
                target
            }
        };
        if target.is_empty() || target.contains(&0) {
            return Err(corrupt("a symbolic link has no target"));
        }
        Ok(target)
    }
}

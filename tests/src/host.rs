//! What a node has beside its network: files of its own, and processes by name.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::agent::host_root;
use crate::guest::Daemon;
use crate::topology::Cluster;

impl Cluster {
    fn file(&self, node: usize, path: &str) -> Result<PathBuf> {
        Ok(host_root(self.directory(), self.node(node)?).join(path))
    }

    /// Writes a file of a node; `path` is below its root.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, node: usize, path: &str, text: &str) -> Result<()> {
        let path = self.file(node, path)?;
        let folder = path.parent().context("a file without a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        // Renamed into place: a reader sees the whole file or none.
        let draft = path.with_extension("draft");
        fs::write(&draft, text)
            .and_then(|()| fs::rename(&draft, &path))
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes a file of a node.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove(&self, node: usize, path: &str) -> Result<()> {
        let path = self.file(node, path)?;
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))
    }

    /// Runs a process of this name on a node, until the cluster ends.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn run_as(&mut self, node: usize, name: &str) -> Result<()> {
        let path = self.file(node, "bin")?.join(name);
        let folder = path.parent().context("a program without a folder")?;
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        // A process is called after the path that was run, also if it is a link
        // (begin_new_exec, fs/exec.c).
        symlink("/usr/bin/sleep", &path)
            .with_context(|| format!("cannot make {}", path.display()))?;
        let mut command = self.node(node)?.netns.command(&path);
        command.arg("infinity");
        self.guests.push(Box::new(Daemon::start(command)?));
        Ok(())
    }
}

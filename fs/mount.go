package fs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"imagefs/codec"
	"imagefs/fs/image"
	"imagefs/fs/stage"
	"imagefs/remote/catalog"
)

// Config says how a catalog is mounted.
type Config struct {
	Source     string // shown as the file system's device
	Mountpoint string // an existing folder, absolute
	AllowOther bool   // users other than the one who mounts may look
	UID, GID   uint32 // owner of everything
	Umask      uint32 // permission bits to take away
	Options    []string
	Spool      *stage.Spool    // of files that are copied in; nil mounts read-only
	Exts       stage.Exts      // extensions of names, and what they promise
	Packages   []codec.Package // that are shown
	Problems   *Problems       // for .imagefs/errors; made if nil
	Refresh    time.Duration   // between two listings of the store; 0: only when asked
	Log        *slog.Logger

	Version  string // for .imagefs/version
	Settings any    // for .imagefs/config, shown as JSON
	Stats    func() any
}

// Server is a mounted catalog.
type Server struct {
	cfg  Config
	tree *tree
	fuse *fuse.Server

	stop context.CancelFunc
	done sync.WaitGroup // of the refresh loop
}

// Sizes of a request. The kernel splits what is larger; without a read-ahead of
// the same size, buffered reads arrive in pieces of 128 KiB.
const (
	maxRead       = 1 << 20
	maxBackground = 64 // requests of read-ahead under way at once
)

// Mount shows cat at cfg.Mountpoint and returns when the mount answers; a cat that
// was not listed yet is listed behind it. A dead mount that an earlier daemon left
// there is cleared first.
func Mount(cfg Config, cat *catalog.Catalog, opener *image.Opener) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if err := clearDead(cfg.Mountpoint, cfg.Log); err != nil {
		return nil, err
	}
	if cfg.Problems == nil {
		cfg.Problems = new(Problems)
	}
	st := &status{Problems: cfg.Problems}
	t := &tree{cfg: cfg, cat: cat, opener: opener, log: cfg.Log, status: st}
	st.files = []statusFile{
		{"version", func() []byte { return []byte(cfg.Version + "\n") }},
		{"config", func() []byte { return renderJSON(cfg.Settings) }},
		{"errors", st.render},
		{"uploads", func() []byte { return renderUploads(cfg.Spool) }},
		{"stats", func() []byte {
			if cfg.Stats == nil {
				return nil
			}
			return renderJSON(cfg.Stats())
		}},
	}
	opts := &fs.Options{
		// The kernel would believe the entry, not the node.
		RootStableAttr: &fs.StableAttr{Ino: 1},
		Logger:         slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
		MountOptions: fuse.MountOptions{
			FsName: cfg.Source, Name: "imagefs",
			AllowOther: cfg.AllowOther,
			// Who may read is the kernel's to check, by the modes shown.
			Options:       append([]string{"default_permissions"}, cfg.Options...),
			MaxWrite:      maxRead,
			MaxReadAhead:  maxRead,
			MaxBackground: maxBackground,
			// Replies come from memory: splicing a megabyte exceeds a pipe.
			DisableSplice: true,
			// Listing must not look every name up: that opens images.
			DisableReadDirPlus: true,
			// Files never change, but those written here: pages never have
			// to be dropped.
			ExplicitDataCacheControl: true,
			// The open tells of O_TRUNC, and no write asks for attributes.
			ExtraCapabilities: fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_HANDLE_KILLPRIV_V2,
			Logger:            slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
		},
	}
	if os.Geteuid() == 0 {
		// Without the helper program, and so without needing it installed.
		opts.DirectMountStrict = true
		opts.DirectMountFlags = unix.MS_NOSUID | unix.MS_NODEV
	}
	if cfg.Spool == nil {
		opts.DirectMountFlags |= unix.MS_RDONLY
		if !opts.DirectMountStrict {
			opts.Options = append(opts.Options, "ro")
		}
	}
	root := t.root()
	root.ino = 1
	server, err := serve(cfg.Mountpoint, root, opts)
	if err != nil {
		return nil, fmt.Errorf("mount on %q: %w", cfg.Mountpoint, explain(err))
	}
	s := &Server{cfg: cfg, tree: t, fuse: server}
	raiseReadAhead(cfg.Mountpoint, cfg.Log)
	ctx, cancel := context.WithCancel(context.Background())
	s.stop = cancel
	s.done.Go(func() {
		if s.listFirst(ctx) && cfg.Refresh > 0 {
			s.refreshLoop(ctx)
		}
	})
	return s, nil
}

// serve mounts and starts to serve. The library's own way opens a file of the
// new mount at the end, so that no program that polls files can block; a daemon
// that is killed in that moment waits for its own answer for ever, and so does
// everyone who uses the mount. Nothing here opens files of the mount, so that
// it is not needed, and the first exchange with the kernel, after which the
// mount answers, is part of making the server.
func serve(path string, root fs.InodeEmbedder, opts *fs.Options) (*fuse.Server, error) {
	server, err := fuse.NewServer(fs.NewNodeFS(root, opts), path, &opts.MountOptions)
	if err != nil {
		return nil, err
	}
	go server.Serve()
	return server, nil
}

// explain adds what to do to the errors that every new user meets.
func explain(err error) error {
	switch {
	case errors.Is(err, syscall.ENOENT) && !exists("/dev/fuse"):
		return fmt.Errorf("%w (no /dev/fuse: load the fuse module)", err)
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return fmt.Errorf("%w (may this user mount? see fusermount3 and user_allow_other in /etc/fuse.conf)", err)
	}
	return err
}

func exists(path string) bool { _, err := os.Stat(path); return err == nil }

// Wait returns when the file system is no longer mounted, by whomever.
func (s *Server) Wait() {
	s.fuse.Wait()
	s.stop()
	s.done.Wait()
}

// Unmount ends the mount. While files are open on it, it is taken out of the
// tree at once and ends with the last of them.
func (s *Server) Unmount() error {
	err := s.fuse.Unmount()
	if err == nil {
		return nil
	}
	if lazy := unix.Unmount(s.cfg.Mountpoint, unix.MNT_DETACH); lazy == nil {
		s.cfg.Log.Info("unmounted while in use: open files stay readable until the daemon ends", "path", s.cfg.Mountpoint)
		return nil
	}
	return fmt.Errorf("unmount %q: %w", s.cfg.Mountpoint, err)
}

// Refresh lists the store anew and makes the kernel forget the names that
// changed.
func (s *Server) Refresh(ctx context.Context) {
	changed, err := s.tree.cat.Refresh(ctx)
	if err != nil {
		if ctx.Err() == nil {
			s.tree.fail("refresh", s.cfg.Source, err)
		}
		return
	}
	if len(changed) > 0 {
		s.cfg.Log.Info("catalog changed", "images", len(changed), "first", changed[0])
	}
}

// listFirst lists the store behind the mount, unless it was listed before,
// again and again until that works. It reports whether it did before ctx ended.
func (s *Server) listFirst(ctx context.Context) bool {
	const longest = 30 * time.Second
	for pause := time.Second; ; pause = min(2*pause, longest) {
		err := s.tree.cat.Ready(ctx)
		switch {
		case err == nil:
			s.cfg.Log.Info("catalog listed", "images", s.tree.cat.Count())
			return true
		case ctx.Err() != nil:
			return false
		}
		s.tree.fail("list", s.cfg.Source, err)
		select {
		case <-ctx.Done():
			return false
		case <-time.After(pause):
		}
	}
}

func (s *Server) refreshLoop(ctx context.Context) {
	tick := time.NewTicker(s.cfg.Refresh)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.Refresh(ctx)
		}
	}
}

// mountinfo returns the fields of the topmost mount at path, nil without one.
// It reads the kernel's table: a daemon must not touch its own mount.
func mountinfo(path string) []string {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil
	}
	var found []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 6 && unescape(f[4]) == path {
			found = f
		}
	}
	return found
}

var octal = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)

func unescape(s string) string { return octal.Replace(s) }

// clearDead unmounts the mounts of ours at path whose daemons are gone;
// anything else there is left alone.
func clearDead(path string, log *slog.Logger) error {
	for dead(path) {
		if f := mountinfo(path); f == nil || !strings.Contains(strings.Join(f, " "), " - fuse.imagefs ") {
			return fmt.Errorf("mount on %q: a dead mount of another file system is there: unmount it first", path)
		}
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			if err := fusermount(path, true); err != nil {
				return fmt.Errorf("clear the dead mount on %q: %w", path, err)
			}
		}
		log.Info("cleared a dead mount", "path", path)
	}
	return nil
}

// dead reports whether nobody serves what is mounted on path. The kernel may
// remember the attributes of the root of a dead mount, but never its statfs.
func dead(path string) bool {
	var st unix.Statfs_t
	return errors.Is(unix.Statfs(path, &st), unix.ENOTCONN)
}

// raiseReadAhead lets buffered reads arrive whole. It needs privilege; without,
// reads work in smaller pieces.
func raiseReadAhead(path string, log *slog.Logger) {
	f := mountinfo(path)
	if f == nil {
		return
	}
	knob := "/sys/class/bdi/" + f[2] + "/read_ahead_kb"
	if err := os.WriteFile(knob, []byte(fmt.Sprint(maxRead>>10)), 0); err != nil {
		log.Debug("read-ahead stays as it is", "err", err)
	}
}

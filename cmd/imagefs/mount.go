package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"imagefs/fs"
	"imagefs/remote"
)

// defaultCache is the size of the block cache where no flag says else.
const defaultCache = 256 << 20

// mountFlags are what a mount can be told.
type mountFlags struct {
	store      storeFlags
	spool      spoolFlags
	disk       diskFlags
	formats    string
	cacheSize  size
	refresh    time.Duration
	idle       time.Duration
	foreground bool
	allowOther bool
	uid, gid   int64
	umask      octal
	options    []string
	logFile    string
	pprof      string
	verbose    bool
}

func mountCommand() *command {
	f := &mountFlags{cacheSize: defaultCache, umask: 0}
	c := &command{
		name: "mount", args: "STORE MOUNTPOINT", summary: "mount a store's images",
		help: `Returns when the mount answers, and leaves a daemon behind; unmount it with
umount or "fusermount3 -u". SIGHUP makes the daemon list the store at once.
The mount explains itself in .imagefs/ (version, config, stats, errors).

Example: imagefs mount ./store /mnt/imagefs
`,
	}
	c.flags = func(set *pflag.FlagSet) {
		set.StringVar(&f.formats, "formats", "", "formats to show, comma separated, or all (default all but zvhd, zvhd2 and flavours such as sparse.vmdk)")
		set.Var(&f.cacheSize, "cache-size", "memory for cached blocks, such as 512M")
		set.DurationVar(&f.refresh, "refresh", 30*time.Second, "time between two listings of the store; 0 to list only on SIGHUP")
		set.DurationVar(&f.idle, "idle", 5*time.Minute, "time without a read after which memory is given back; 0 for never")
		set.BoolVarP(&f.foreground, "foreground", "f", false, "stay in the foreground and log to standard error")
		set.BoolVar(&f.allowOther, "allow-other", false, "let other users see the mount")
		set.Int64Var(&f.uid, "uid", int64(os.Getuid()), "owner of all files")
		set.Int64Var(&f.gid, "gid", int64(os.Getgid()), "group of all files")
		set.Var(&f.umask, "umask", "permission bits to take away, octal")
		set.StringArrayVarP(&f.options, "options", "o", nil, "options as mount(8) passes them, comma separated")
		set.StringVar(&f.logFile, "log-file", "", "file to log to in the background (default: .imagefs/errors only)")
		set.StringVar(&f.pprof, "pprof", "", "address of this host to serve the daemon's profiles at, such as 127.0.0.1:6060")
		set.BoolVarP(&f.verbose, "verbose", "v", false, "log more")
		f.disk.add(set)
		f.spool.add(set)
		f.store.add(set)
	}
	c.run = func(ctx context.Context, args []string) error {
		// mount(8) puts its options behind the arguments; pflag takes them anywhere.
		if err := c.need(args, 2); err != nil {
			return err
		}
		if err := f.applyOptions(); err != nil {
			return err
		}
		if err := f.disk.check(); err != nil {
			return err
		}
		if !f.foreground && !isDaemon() {
			return startDaemon()
		}
		err := f.run(ctx, args[0], args[1])
		if err != nil && isDaemon() {
			reportFailure(err)
		}
		return err
	}
	return c
}

// run mounts and serves until unmounted.
func (f *mountFlags) run(ctx context.Context, storeName, mountpoint string) error {
	mountpoint, err := filepath.Abs(mountpoint)
	if err != nil {
		return err
	}
	out := os.Stderr
	if isDaemon() {
		if out, err = openLog(f.logFile); err != nil {
			return err
		}
		defer out.Close()
	}
	log := f.logger(out)
	if err := checkMountpoint(mountpoint); err != nil {
		return err
	}
	// Before anything else: a hang-up must never end the daemon.
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	defer signal.Stop(hangup)
	if f.pprof != "" {
		p, err := serveProfiles(f.pprof, log)
		if err != nil {
			return err
		}
		defer p.close()
		f.pprof = p.addr
	}
	s, err := begin(ctx, &f.store, storeName, f.formats, int64(f.cacheSize))
	if err != nil {
		return err
	}
	defer s.close()
	problems := new(fs.Problems)
	if err := f.openDisk(s, log, problems); err != nil {
		return err
	}
	// Twice the live heap is the collector's habit; cached blocks are live.
	memory := int64(f.cacheSize) + heapBesideCache
	if s.disk != nil {
		memory += diskQueue
	}
	debug.SetMemoryLimit(memory)
	preferHugePages(memory)
	spool, err := f.spool.open(s, log, problems)
	if err != nil {
		return err
	}
	if spool != nil {
		defer f.spool.close(spool, log)
	}
	server, err := fs.Mount(fs.Config{
		Spool: spool, Exts: exts, Packages: s.packages, Problems: problems,
		Source: s.store.name, Mountpoint: mountpoint, AllowOther: f.allowOther,
		UID: uint32(f.uid), GID: uint32(f.gid), Umask: uint32(f.umask), Options: f.options,
		Refresh: f.refresh, Log: log, Version: buildVersion(),
		Settings: f.settings(s, mountpoint), Stats: s.stats(time.Now()),
	}, s.cat, s.opener)
	if err != nil {
		return err
	}
	log.Info("mounted", "path", mountpoint, "store", s.store.name)
	if isDaemon() {
		if err := detach(out); err != nil {
			server.Unmount()
			return err
		}
	}
	if f.idle > 0 {
		idle, stop := context.WithCancel(ctx)
		defer stop()
		go s.releaseIdle(idle, f.idle)
	}
	gone := make(chan struct{})
	go func() { server.Wait(); close(gone) }()
	end := ctx.Done() // SIGTERM or an interrupt, also one that came before the mount answered
	for {
		select {
		case <-gone:
			log.Info("unmounted", "path", mountpoint)
			s.closeDisk() // before the spool, which may take long: the next mount wants it
			return nil
		case <-hangup:
			server.Refresh(context.Background())
		case <-end:
			end = nil
			if err := server.Unmount(); err != nil {
				return err
			}
		}
	}
}

// openDisk opens the disk cache where one was asked for and is of use.
func (f *mountFlags) openDisk(s *session, log *slog.Logger, problems *fs.Problems) error {
	if f.disk.dir == "" {
		return nil
	}
	if remote.IsLocal(s.store) {
		log.Info("the cache folder is not used: the store is a folder itself", "path", f.disk.dir)
		return nil
	}
	return f.disk.open(s, func(err error) {
		problems.Record("cache", f.disk.dir, err)
		log.Warn("disk cache", "err", err)
	})
}

// heapBesideCache is what the daemon may use beside the block cache before the
// collector works harder: tables of open images, requests under way. The limit is a
// soft one, so that the README says more.
const heapBesideCache = 160 << 20

func (f *mountFlags) logger(out io.Writer) *slog.Logger {
	level := slog.LevelInfo
	if f.verbose {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: level}))
}

// checkMountpoint gives the commonest mistakes words of their own.
func checkMountpoint(path string) error {
	info, err := os.Stat(path)
	switch {
	case os.IsNotExist(err):
		return fmt.Errorf("mount point %q does not exist: make the folder first", path)
	case err == nil && !info.IsDir():
		return fmt.Errorf("mount point %q is not a folder", path)
	}
	return nil // a dead mount answers with an error, and is cleared by Mount
}

func (f *mountFlags) settings(s *session, mountpoint string) any {
	var shown []string
	for _, v := range s.opener.Views() {
		shown = append(shown, v.Name())
	}
	for _, p := range s.packages {
		shown = append(shown, p.Name())
	}
	mode, spool := "read-only", ""
	if !f.spool.readOnly {
		mode = "write-through"
		if f.spool.writeBack {
			mode = "write-back"
		}
		spool, _ = f.spool.folder(s.store.id) // it was made, so it has a name
	}
	var diskDir string
	var diskSize int64
	if s.disk != nil {
		diskDir, diskSize = f.disk.dir, int64(f.disk.size)
	}
	return struct {
		Store      string   `json:"store"`
		Mountpoint string   `json:"mountpoint"`
		Formats    []string `json:"formats"`
		CacheSize  int64    `json:"cache_size"`
		CacheDir   string   `json:"cache_dir,omitempty"`
		DiskSize   int64    `json:"disk_cache_size,omitempty"`
		Refresh    string   `json:"refresh"`
		Timeout    string   `json:"timeout"`
		AllowOther bool     `json:"allow_other"`
		UID        int64    `json:"uid"`
		GID        int64    `json:"gid"`
		Umask      string   `json:"umask"`
		Mode       string   `json:"mode"`
		Spool      string   `json:"spool,omitempty"`
		Pprof      string   `json:"pprof,omitempty"`
		PID        int      `json:"pid"`
	}{
		s.store.name, mountpoint, shown, int64(f.cacheSize), diskDir, diskSize, f.refresh.String(), f.store.timeout.String(),
		f.allowOther, f.uid, f.gid, f.umask.String(),
		mode, spool, f.pprof, os.Getpid(),
	}
}

// stats returns what .imagefs/stats shows.
func (s *session) stats(since time.Time) func() any {
	return func() any {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		out := map[string]any{
			"uptime_seconds": int64(time.Since(since).Seconds()),
			"images":         s.cat.Count(),
			"store":          s.store.Counts(),
			"cache":          s.cache.Stats(),
			"memory": map[string]uint64{
				"heap_bytes": m.HeapAlloc, "system_bytes": m.Sys,
			},
		}
		if s.disk != nil {
			out["disk_cache"] = s.disk.Stats()
		}
		if s.store.stats != nil {
			out["s3"] = s.store.stats()
		}
		return out
	}
}

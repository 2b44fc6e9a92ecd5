package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"imagefs/codec/all"
	"imagefs/fs"
	"imagefs/fs/stage"
)

// exts are what the names of imported files may end in.
var exts = stage.Exts{Disks: all.Extensions, Packages: all.PackageExtensions()}

// spoolFlags say how files that are copied in wait for the store.
type spoolFlags struct {
	dir       string
	readOnly  bool
	writeBack bool
	timeout   time.Duration
}

// addFolder adds the flag that commands without a mount know too.
func (f *spoolFlags) addFolder(set *pflag.FlagSet) {
	set.StringVar(&f.dir, "spool", "", "folder for files that are being copied in (default "+defaultSpoolHelp+")")
}

func (f *spoolFlags) add(set *pflag.FlagSet) {
	f.addFolder(set)
	set.BoolVar(&f.readOnly, "read-only", false, "refuse all writing")
	set.BoolVar(&f.writeBack, "write-back", false, "close() returns when the spool has a file safely; upload behind")
	set.DurationVar(&f.timeout, "unmount-timeout", 10*time.Minute, "longest that the daemon goes on storing after an unmount; what is left goes on with the next mount")
}

const defaultSpoolHelp = "~/.local/state/imagefs/spool"

// root is the folder for all that is being copied in.
func (f *spoolFlags) root() (string, error) {
	dir := f.dir
	if dir == "" {
		state := os.Getenv("XDG_STATE_HOME")
		if state == "" {
			home, err := os.UserHomeDir()
			if err != nil {
				return "", fmt.Errorf("no home folder for the spool: say --spool DIR (or mount with --read-only): %w", err)
			}
			state = filepath.Join(home, ".local", "state")
		}
		dir = filepath.Join(state, "imagefs", "spool")
	}
	return filepath.Abs(dir)
}

// folder is where the files for a store wait: two stores never share one.
func (f *spoolFlags) folder(store string) (string, error) {
	dir, err := f.root()
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256([]byte(store))
	return filepath.Join(dir, hex.EncodeToString(sum[:8])), nil
}

// open opens the spool of a mount, nil for one that is only read.
func (f *spoolFlags) open(s *session, log *slog.Logger, problems *fs.Problems) (*stage.Spool, error) {
	if f.readOnly {
		return nil, nil
	}
	dir, err := f.folder(s.store.id)
	if err != nil {
		return nil, err
	}
	im, err := stage.NewImporter(s.store, s.cat, all.Formats, all.Packages)
	if err != nil {
		return nil, err
	}
	spool, err := stage.Open(stage.Config{
		Dir: dir, Importer: im, Catalog: s.cat, Exts: exts, WriteBack: f.writeBack, Log: log,
		Report: func(op, path string, err error) {
			problems.Record(op, path, err)
			var wait *stage.WaitError
			if errors.As(err, &wait) {
				log.Info("waits for more files", "path", path, "err", err)
				return
			}
			log.Error(op+" failed", "path", path, "err", err)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("%w (choose another folder with --spool, or mount with --read-only)", err)
	}
	return spool, nil
}

// close waits until what was copied in is stored, as long as it may.
func (f *spoolFlags) close(spool *stage.Spool, log *slog.Logger) {
	ctx, cancel := context.WithTimeout(context.Background(), f.timeout)
	defer cancel()
	if err := spool.Close(ctx); err != nil {
		log.Warn("some files are not stored yet: the next mount of this store goes on with them", "err", err)
	}
}

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// imports compares copying a file into a mount with uploading the same file by
// the S3 client alone, and tells what was sent and the memory that it took.
func (b *bench) imports() error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	s3, err := b.startS3(ctx)
	if err != nil {
		return err
	}
	defer s3.stop()
	plain, sparse := b.path("import.qcow2"), b.path("import.raw")
	data := 2 * b.size // as large as the guest
	if err := b.importSources(plain, sparse, data); err != nil {
		return err
	}
	defer os.Remove(plain)
	defer os.Remove(sparse)
	b.head(fmt.Sprintf("cp of %d MiB into a mount of S3 against an upload by the S3 client alone", data>>20), "cp", "upload")
	var notes []string
	for _, k := range []struct{ what, file, ext string }{
		{"plain qcow2", plain, "qcow2"},
		{"raw, four fifths holes", sparse, "raw"},
	} {
		var note string
		err := b.versus("import of a "+k.what, func() (time.Duration, error) {
			d, n, err := b.importOne(s3, k.file, k.ext)
			note = k.what + ": " + n
			return d, err
		}, func() (time.Duration, error) {
			return timed(func() error { return s3.upload(ctx, k.file, "plain."+k.ext) })
		})
		if err != nil {
			return err
		}
		notes = append(notes, note)
	}
	for _, n := range notes {
		fmt.Fprintln(b.out, "  "+n)
	}
	return nil
}

// importSources makes a plain qcow2 without holes, and a raw disk of the same
// size of which a fifth is the guest's file system.
func (b *bench) importSources(plain, sparse string, size int64) error {
	tmp := b.path("import.tmp")
	defer os.Remove(tmp)
	f, err := os.Create(tmp)
	if err != nil {
		return err
	}
	rng := rand.NewChaCha8([32]byte{1})
	buf := make([]byte, 1<<20)
	for n := int64(0); n < size && err == nil; n += int64(len(buf)) {
		_, _ = rng.Read(buf)
		_, err = f.Write(buf)
	}
	return errors.Join(err, f.Close(),
		command("qemu-img", "convert", "-f", "raw", "-O", "qcow2", tmp, plain),
		os.Remove(tmp),
		command("qemu-img", "convert", "-O", "raw", b.path("store", "guest.qcow2"), tmp),
		command("qemu-img", "dd", "-f", "raw", "-O", "raw", "bs=1M", "count="+strconv.FormatInt(size/5>>20, 10), "if="+tmp, "of="+sparse),
		os.Truncate(sparse, size))
}

// importOne copies a file into a new mount. The copy is what is timed.
func (b *bench) importOne(s3 *s3peer, file, ext string) (took time.Duration, note string, err error) {
	mnt, done, err := b.mount("s3://bench", "--endpoint", s3.endpoint, "--spool", b.path("spool"), "--cache-size", "64M")
	if err != nil {
		return 0, "", err
	}
	defer done()
	name := fmt.Sprintf("import%d", time.Now().UnixNano())
	dir := filepath.Join(mnt, "images", name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, "", err
	}
	took, err = timed(func() error { return command("cp", file, filepath.Join(dir, "disk0."+ext)) })
	if err != nil {
		return 0, "", err
	}
	var stats struct {
		Store struct {
			Bytes int64 `json:"uploaded_bytes"`
		} `json:"store"`
	}
	var config struct {
		PID int `json:"pid"`
	}
	for file, v := range map[string]any{"stats": &stats, "config": &config} {
		doc, err := os.ReadFile(filepath.Join(mnt, ".imagefs", file))
		if err == nil {
			err = json.Unmarshal(doc, v)
		}
		if err != nil {
			return 0, "", err
		}
	}
	peak, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", config.PID))
	if err != nil {
		return 0, "", err
	}
	hwm := "unknown"
	for line := range strings.Lines(string(peak)) {
		if kb, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			hwm = strings.TrimSpace(kb)
		}
	}
	held, err := dataOf(file)
	if err != nil {
		return 0, "", err
	}
	note = fmt.Sprintf("sent %d MiB of a file with %d MiB of data; peak memory of the daemon %s, cache 64 MiB", stats.Store.Bytes>>20, held>>20, hwm)
	return took, note, command(b.imagefs, "rm", "--endpoint", s3.endpoint, "s3://bench", name)
}

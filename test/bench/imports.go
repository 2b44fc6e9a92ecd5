package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// imports compares copying a file into a mount with uploading the same file by
// the S3 client alone, and tells what was sent.
func (b *bench) imports() error {
	plain, sparse := b.path("import.qcow2"), b.path("import.raw")
	size := 2 * b.size // as large as the guest
	defer os.Remove(plain)
	defer os.Remove(sparse)
	if err := b.importSources(plain, sparse, size); err != nil {
		return err
	}
	head(b.out, fmt.Sprintf("cp of %d MiB into a mount of S3 (cache 64 MiB) against an upload by the S3 client alone", size>>20))
	return b.served(0, func(s *s3peer) error {
		defer s.command("delete", bucket, "upload")
		var errs []error
		for _, k := range []struct{ what, file, ext string }{
			{"plain qcow2", plain, "qcow2"},
			{"raw, four fifths holes", sparse, "raw"},
		} {
			var sent int64
			err := b.hold(contest{
				part: "import", name: "import of a " + k.what, amount: float64(size >> 20), unit: "MiB/s",
				ours: func(t *turn) (err error) {
					sent, err = t.importOne(s, k.file, k.ext)
					return err
				},
				entrants: []entrant{{rival: upload, run: func(t *turn) error {
					return t.time("", func() error { return t.child("upload", s.endpoint, "upload", k.file) })
				}}},
			})
			held, err2 := dataOf(k.file)
			errs = append(errs, err, err2)
			fmt.Fprintf(b.out, "  sent %d MiB of a file with %d MiB of data\n", sent>>20, held>>20)
		}
		return errors.Join(errs...)
	})
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
		b.command("qemu-img", "convert", "-f", "raw", "-O", "qcow2", tmp, plain),
		b.command("qemu-img", "dd", "-f", "raw", "-O", "raw", "bs=1M", "count="+strconv.FormatInt(size/5>>20, 10), "if="+b.raw(), "of="+sparse),
		os.Truncate(sparse, size))
}

// importOne copies a file into a new mount, which is what is timed, and removes
// it. It returns how many bytes were sent to the store.
func (t *turn) importOne(s *s3peer, file, ext string) (sent int64, err error) {
	spool, err := t.folder("spool")
	if err != nil {
		return 0, err
	}
	mnt, err := t.mount("s3://"+bucket, "--endpoint", s.endpoint, "--path-style", "path", "--spool", spool, "--cache-size", "64M")
	if err != nil {
		return 0, err
	}
	name := fmt.Sprintf("import%d", time.Now().UnixNano())
	dir := filepath.Join(mnt, "images", name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return 0, err
	}
	if err := t.time("", func() error { return t.run("cp", file, filepath.Join(dir, "disk0."+ext)) }); err != nil {
		return 0, err
	}
	var stats struct {
		Store struct {
			Bytes int64 `json:"uploaded_bytes"`
		} `json:"store"`
	}
	doc, err := os.ReadFile(filepath.Join(mnt, ".imagefs/stats"))
	if err == nil {
		err = json.Unmarshal(doc, &stats)
	}
	where := []string{"--endpoint", s.endpoint, "--path-style", "path", "s3://" + bucket}
	return stats.Store.Bytes, errors.Join(err,
		t.run(t.imagefs, append([]string{"rm"}, append(where, name)...)...),
		t.run(t.imagefs, append([]string{"gc", "--older-than", "0s"}, where...)...)) // else every round's bytes stay
}

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// mount mounts a store with imagefs until the turn is over.
func (t *turn) mount(store string, args ...string) (mnt string, err error) {
	if mnt, err = t.mountpoint("mnt"); err != nil {
		return "", err
	}
	args = slices.Concat([]string{"mount", "--formats", "all"}, args, []string{store, mnt})
	if err := t.run(t.imagefs, args...); err != nil {
		return "", err
	}
	doc, err := os.ReadFile(filepath.Join(mnt, ".imagefs/config"))
	if err != nil {
		return "", err
	}
	var config struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal(doc, &config); err != nil {
		return "", err
	}
	t.daemons = append(t.daemons, config.PID)
	t.later(func() { unmount(mnt); gone(config.PID) })
	return mnt, nil
}

// mountS3 is mount of the bucket of a server.
func (t *turn) mountS3(s *s3peer, args ...string) (mnt string, err error) {
	return t.mount("s3://"+bucket, append([]string{"--endpoint", s.endpoint, "--path-style", "path", "--read-only"}, args...)...)
}

// disk is the path of a view of an image's first disk.
func disk(mnt, image, view string) string {
	return filepath.Join(mnt, "images", image, "disk0."+view)
}

// convert runs qemu-img with what was found best for such a conversion.
func (t *turn) convert(src, out string, args []string) error {
	how := t.best(src, args)
	return t.run("qemu-img", slices.Concat([]string{"convert"}, how, args, []string{src, out})...)
}

// settings are those of qemu-img that users turn: the requests in flight, and
// whether what it writes may be out of order.
var qemuSettings = [][]string{{"-W", "-m", "8"}, {"-W", "-m", "16"}, {"-m", "8"}, nil}

// best tells how qemu-img converts best, or the first setting where that was not tried.
func (b *bench) best(src string, args []string) []string {
	how, ok := b.settings[fmt.Sprint(src, args)]
	if !ok {
		return qemuSettings[0]
	}
	return how
}

// tryQemu finds how qemu-img converts best, by trying each way once.
func (b *bench) tryQemu(src string, args []string) error {
	out := b.path("out")
	defer os.Remove(out)
	least := time.Duration(-1)
	for _, how := range qemuSettings {
		start := time.Now()
		if err := b.command("qemu-img", slices.Concat([]string{"convert"}, how, args, []string{src, out})...); err != nil {
			return err
		}
		if took := time.Since(start); least < 0 || took < least {
			least, b.settings[fmt.Sprint(src, args)] = took, how
		}
		_ = os.Remove(out)
	}
	return nil
}

// xmounted shows a raw disk in another format through xmount, and returns the
// folder in which it does.
func (t *turn) xmounted(raw, format string) (mnt string, err error) {
	if mnt, err = t.mountpoint("xmount"); err != nil {
		return "", err
	}
	if err := t.run("xmount", "--in", "raw", raw, "--out", format, mnt); err != nil {
		return "", err
	}
	pid, ok := processOf(mnt)
	if !ok || !mounted(mnt) {
		return "", errors.New("xmount does not run")
	}
	t.daemons = append(t.daemons, pid)
	t.later(func() { unmount(mnt); gone(pid) })
	return mnt, nil
}

// exported shows a qcow2 as a raw disk through the storage daemon of QEMU.
func (t *turn) exported(qcow2 string) (file string, err error) {
	dir, err := t.folder("export")
	if err != nil {
		return "", err
	}
	file = filepath.Join(dir, "disk")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		return "", err
	}
	t.later(func() { unmount(file) })
	return file, t.background(func() bool { return mounted(file) }, "qemu-storage-daemon",
		"--blockdev", "driver=file,node-name=f,read-only=on,filename="+qcow2,
		"--blockdev", "driver=qcow2,node-name=q,read-only=on,file=f",
		"--export", "type=fuse,id=e,node-name=q,allow-other=off,mountpoint="+file)
}

// rclone shows a bucket through rclone mount.
func (t *turn) rclone(s *s3peer, args ...string) (mnt string, err error) {
	if mnt, err = t.mountpoint("rclone"); err != nil {
		return "", err
	}
	cache, err := t.folder("rclone-cache")
	if err != nil {
		return "", err
	}
	// Its S3 client cannot use one, and the server speaks plain HTTP.
	if err := os.Unsetenv("AWS_CA_BUNDLE"); err != nil {
		return "", err
	}
	args = slices.Concat([]string{
		"mount", "--config", "", "--cache-dir", cache, "--read-only", "--s3-provider", "Other", "--s3-env-auth",
		"--s3-endpoint", s.endpoint, "--s3-region", "us-east-1", "--s3-force-path-style",
	}, args, []string{":s3:" + bucket, mnt})
	return mnt, t.background(func() bool { return mounted(mnt) }, "rclone", args...)
}

// s3fs shows a bucket through s3fs.
func (t *turn) s3fs(s *s3peer) (mnt string, err error) {
	if mnt, err = t.mountpoint("s3fs"); err != nil {
		return "", err
	}
	tmp, err := t.folder("s3fs-tmp")
	if err != nil {
		return "", err
	}
	password := filepath.Join(tmp, "password")
	if err := os.WriteFile(password, []byte(accessKey+":"+secretKey+"\n"), 0o600); err != nil {
		return "", err
	}
	return mnt, t.background(func() bool { return mounted(mnt) }, "s3fs", bucket, mnt, "-f", "-o",
		"ro,use_path_request_style,tmpdir="+tmp+",passwd_file="+password+",url="+s.endpoint)
}

// loopback shows a folder through the library's own loopback.
func (t *turn) loopback(dir string) (mnt string, err error) {
	if mnt, err = t.mountpoint("loop"); err != nil {
		return "", err
	}
	ready := filepath.Join(dir, "ready")
	t.later(func() { _ = os.Remove(ready) })
	return mnt, t.background(func() bool { _, err := os.Stat(ready); return err == nil }, "/proc/self/exe", "loopback", dir, mnt, ready)
}

// serveLoopback mounts a folder through the library's loopback, with the
// settings of request size that imagefs uses, and then makes the file ready.
func serveLoopback(args []string) error {
	dir, mnt, ready := args[0], args[1], args[2]
	root, err := fs.NewLoopbackRoot(dir)
	if err != nil {
		return err
	}
	hour := time.Hour
	server, err := fs.Mount(mnt, root, &fs.Options{
		EntryTimeout: &hour, AttrTimeout: &hour,
		MountOptions: fuse.MountOptions{
			FsName: "loopback", Name: "loopback", DirectMountStrict: os.Getuid() == 0,
			MaxWrite: 1 << 20, MaxReadAhead: 1 << 20, MaxBackground: 64, DisableSplice: true,
			// Else the kernel reads the file itself and no daemon is measured.
			DisabledCapabilities: fuse.CAP_PASSTHROUGH,
		},
	})
	if err != nil {
		return err
	}
	if device, ok := deviceOf(mnt); ok && os.Getuid() == 0 {
		if err := os.WriteFile("/sys/class/bdi/"+device+"/read_ahead_kb", []byte("1024"), 0); err != nil {
			return errors.Join(err, server.Unmount())
		}
	}
	if err := os.WriteFile(ready, nil, 0o644); err != nil {
		return errors.Join(err, server.Unmount())
	}
	server.Wait()
	return nil
}

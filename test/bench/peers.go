package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/minio/minio-go/v7"
	"github.com/minio/minio-go/v7/pkg/credentials"
)

const directFlag = syscall.O_DIRECT

// aligned returns n bytes that O_DIRECT accepts.
func aligned(n int) []byte {
	const page = 4096
	b := make([]byte, n+page)
	off := int(-uintptr(unsafe.Pointer(&b[0])) & (page - 1))
	return b[off : off+n : off+n]
}

// serveLoopback mounts dir at mnt through the library's loopback, with the
// settings of request size that imagefs uses.
func serveLoopback(dir, mnt string) error {
	root, err := fs.NewLoopbackRoot(dir)
	if err != nil {
		return err
	}
	hour := time.Hour
	server, err := fs.Mount(mnt, root, &fs.Options{
		EntryTimeout: &hour, AttrTimeout: &hour,
		MountOptions: fuse.MountOptions{
			FsName: "loopback", Name: "loopback", DirectMountStrict: true,
			MaxWrite: 1 << 20, MaxReadAhead: 1 << 20, MaxBackground: 64, DisableSplice: true,
			// Else the kernel reads the file itself and no daemon is measured.
			DisabledCapabilities: fuse.CAP_PASSTHROUGH,
		},
	})
	if err != nil {
		return err
	}
	if err := raiseReadAhead(mnt); err != nil {
		return err
	}
	fmt.Println("ready")
	server.Wait()
	return nil
}

// dataOf is what a file holds beside its holes, in bytes.
func dataOf(file string) (int64, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(file, &st); err != nil {
		return 0, err
	}
	return st.Blocks * 512, nil
}

func raiseReadAhead(mnt string) error {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 4 && f[4] == mnt {
			return os.WriteFile("/sys/class/bdi/"+f[2]+"/read_ahead_kb", []byte("1024"), 0)
		}
	}
	return fmt.Errorf("%s is not mounted", mnt)
}

// loopback starts the loopback as a process of its own.
func (b *bench) loopback(dir string) (mnt string, done func(), err error) {
	if mnt, err = os.MkdirTemp(b.dir, "loop"); err != nil {
		return "", nil, err
	}
	cmd := exec.Command("/proc/self/exe", "loopback", dir, mnt)
	cmd.Stderr = os.Stderr
	if _, err := ready(cmd, "ready"); err != nil {
		return "", nil, err
	}
	return mnt, func() {
		command("umount", mnt)
		cmd.Wait()
	}, nil
}

// ready starts a program and returns the line in which it says it is.
func ready(cmd *exec.Cmd, word string) (string, error) {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return "", err
	}
	if err := cmd.Start(); err != nil {
		return "", err
	}
	sc := bufio.NewScanner(out)
	for sc.Scan() {
		if strings.Contains(sc.Text(), word) {
			go func() {
				for sc.Scan() {
				}
			}()
			return sc.Text(), nil
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
	return "", fmt.Errorf("%s ended before it was ready", cmd.Path)
}

// s3peer is a real S3 server with a bucket and a plain client.
type s3peer struct {
	endpoint string
	client   *minio.Client
	stop     func()
}

const accessKey, secretKey = "benchkey", "benchsecret"

func (b *bench) startS3(ctx context.Context) (*s3peer, error) {
	data := b.path("s3")
	if err := os.MkdirAll(data, 0o755); err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, b.s3server, "-dir", data, "-access", accessKey, "-secret", secretKey, "-bucket", "bench")
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	line, err := ready(cmd, "listening on ")
	if err != nil {
		return nil, err
	}
	host := line[strings.Index(line, "listening on ")+len("listening on "):]
	client, err := minio.New(host, &minio.Options{Creds: credentials.NewStaticV4(accessKey, secretKey, "")})
	if err != nil {
		return nil, err
	}
	os.Setenv("AWS_ACCESS_KEY_ID", accessKey)
	os.Setenv("AWS_SECRET_ACCESS_KEY", secretKey)
	return &s3peer{"http://" + host, client, func() { in.Close(); cmd.Wait() }}, nil
}

func (s *s3peer) upload(ctx context.Context, path, key string) error {
	_, err := s.client.FPutObject(ctx, "bench", key, path, minio.PutObjectOptions{DisableContentSha256: true})
	return err
}

func (s *s3peer) download(ctx context.Context, key, path string) error {
	return s.client.FGetObject(ctx, "bench", key, path, minio.GetObjectOptions{})
}

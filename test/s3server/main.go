// Command s3server is a real S3 server for tests: versitygw over a folder, on
// a free port of the loopback interface.
//
//	s3server -dir DIR -access KEY -secret SECRET -bucket images [-user K:S:ROLE] [-public images]
//		[-latency 20ms] [-rate BYTES]
//
// When it answers it prints one line, "listening on 127.0.0.1:PORT". It stops
// when its standard input closes, so that no test can leave it behind, and on
// SIGTERM and SIGINT.
//
// Lines on standard input are commands; each is answered by one line, "ok" or
// "error: REASON". They are carried out at once, whatever the latency. Fields are
// separated by tabs:
//
//	put     BUCKET KEY FILE        store a local file as an object
//	delete  BUCKET KEY
//	user    KEY SECRET ROLE        add or change an account: user, userplus, admin
//	revoke  KEY                    remove an account
//	sent                           "ok N": the bytes of objects sent up to now
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/versity/versitygw/auth"
	"github.com/versity/versitygw/backend/meta"
	"github.com/versity/versitygw/backend/posix"
	"github.com/versity/versitygw/embedgw"
	"github.com/versity/versitygw/s3response"
)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "s3server:", err)
		os.Exit(1)
	}
}

// list is a flag that may be given several times.
type list []string

func (l *list) String() string     { return strings.Join(*l, ",") }
func (l *list) Set(s string) error { *l = append(*l, s); return nil }

func run(args []string, stdin io.Reader, stdout io.Writer) error {
	var buckets, users, public list
	fl := flag.NewFlagSet("s3server", flag.ContinueOnError)
	dir := fl.String("dir", "", "folder that holds the buckets (created if absent)")
	access := fl.String("access", "testkey", "access key of the owner")
	secret := fl.String("secret", "testsecret", "secret key of the owner")
	region := fl.String("region", "us-east-1", "region")
	listen := fl.String("listen", "127.0.0.1:0", "address; port 0 is a free one")
	latency := fl.Duration("latency", 0, "time before each request is answered")
	rate := fl.Int64("rate", 0, "greatest bytes per second of one connection; 0 is no limit")
	fl.Var(&buckets, "bucket", "bucket to create; may be repeated")
	fl.Var(&users, "user", "further account KEY:SECRET:ROLE; may be repeated")
	fl.Var(&public, "public", "bucket that anybody may read; may be repeated")
	if err := fl.Parse(args); err != nil {
		return err
	}
	if *dir == "" || fl.NArg() > 0 || *latency < 0 || *rate < 0 {
		return errors.New("usage: s3server -dir DIR [flags]; all arguments are flags, none is negative")
	}
	root, err := filepath.Abs(*dir)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}

	// The copy threshold has no useful zero: without it every copy fails.
	be, err := posix.New(root, meta.XattrMeta{}, posix.PosixOpts{CopyObjectThreshold: 5 << 30})
	if err != nil {
		return err
	}
	wire := &line{Posix: be, latency: *latency, rate: *rate}
	srv := &server{be: be, owner: auth.Account{Access: *access, Secret: *secret, Role: auth.RoleAdmin}, users: map[string]auth.Account{}}
	for _, b := range append(buckets, public...) {
		if err := srv.bucket(root, b); err != nil {
			return fmt.Errorf("bucket %q: %w", b, err)
		}
	}
	for _, b := range public {
		p := fmt.Sprintf(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":"*","Action":["s3:GetObject","s3:ListBucket"],"Resource":["arn:aws:s3:::%s","arn:aws:s3:::%s/*"]}]}`, b, b)
		if err := be.PutBucketPolicy(context.Background(), b, []byte(p)); err != nil {
			return fmt.Errorf("policy of bucket %q: %w", b, err)
		}
	}
	for _, u := range users {
		f := strings.Split(u, ":")
		if len(f) != 3 {
			return fmt.Errorf("user %q: want KEY:SECRET:ROLE", u)
		}
		if err := srv.CreateAccount(auth.Account{Access: f[0], Secret: f[1], Role: auth.Role(f[2])}); err != nil {
			return fmt.Errorf("user %q: %w", f[0], err)
		}
	}

	addr, err := freeAddr(*listen)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	done := make(chan error, 1)
	go func() {
		done <- embedgw.RunVersityGW(ctx, wire, &embedgw.Config{
			RootUserAccess:    *access,
			RootUserSecret:    *secret,
			Region:            *region,
			Ports:             []string{addr},
			MaxConnections:    4096,
			MaxRequests:       2048,
			MultipartMaxParts: 10000,
			KeepAlive:         true, // else every request opens a connection
			Quiet:             true,
			IAMService:        srv,
		})
	}()
	if err := waitAnswer(ctx, addr, done); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "listening on %s\n", addr)

	go func() {
		defer stop()
		sc := bufio.NewScanner(stdin)
		for sc.Scan() {
			if sc.Text() == "sent" {
				fmt.Fprintf(stdout, "ok %d\n", wire.sent.Load())
				continue
			}
			if err := srv.command(strings.Split(sc.Text(), "\t")); err != nil {
				fmt.Fprintf(stdout, "error: %s\n", strings.ReplaceAll(err.Error(), "\n", " "))
				continue
			}
			fmt.Fprintln(stdout, "ok")
		}
	}()

	select {
	case err := <-done:
		return err
	case <-ctx.Done():
	}
	// A client that holds a connection open must not hold up the end.
	select {
	case err := <-done:
		return err
	case <-time.After(3 * time.Second):
		return nil
	}
}

// freeAddr replaces port 0 by one that is free now. The gateway opens its own
// listener from an address, so another program may in theory be quicker: then
// it fails to start and says so.
func freeAddr(addr string) (string, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

// waitAnswer returns when addr accepts connections.
func waitAnswer(ctx context.Context, addr string, done <-chan error) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(30 * time.Second)
	for {
		c, err := net.Dial("tcp", addr)
		if err == nil {
			return c.Close()
		}
		select {
		case <-tick.C:
		case err := <-done:
			return fmt.Errorf("the gateway stopped at once: %w", err)
		case <-ctx.Done():
			return ctx.Err()
		case <-limit:
			return fmt.Errorf("the gateway does not answer on %s", addr)
		}
	}
}

// server holds the accounts and runs the commands from standard input. It is
// the gateway's account service.
type server struct {
	be    *posix.Posix
	owner auth.Account

	mu    sync.Mutex
	users map[string]auth.Account // guarded by mu
}

// bucket creates a bucket that belongs to the owner, unless its folder exists.
func (s *server) bucket(root, name string) error {
	if err := os.Mkdir(filepath.Join(root, name), 0o755); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil
		}
		return err
	}
	acl, err := json.Marshal(auth.ACL{Owner: s.owner.Access})
	if err != nil {
		return err
	}
	return s.be.PutBucketAcl(context.Background(), name, acl)
}

func (s *server) command(f []string) error {
	ctx := context.Background()
	switch {
	case f[0] == "put" && len(f) == 4:
		file, err := os.Open(f[3])
		if err != nil {
			return err
		}
		defer file.Close()
		st, err := file.Stat()
		if err != nil {
			return err
		}
		size := st.Size()
		_, err = s.be.PutObject(ctx, s3response.PutObjectInput{Bucket: &f[1], Key: &f[2], ContentLength: &size, Body: file})
		return err
	case f[0] == "delete" && len(f) == 3:
		_, err := s.be.DeleteObject(ctx, &s3.DeleteObjectInput{Bucket: &f[1], Key: &f[2]})
		return err
	case f[0] == "user" && len(f) == 4:
		return s.CreateAccount(auth.Account{Access: f[1], Secret: f[2], Role: auth.Role(f[3])})
	case f[0] == "revoke" && len(f) == 2:
		return s.DeleteUserAccount(f[1])
	}
	return fmt.Errorf("unknown command %q", strings.Join(f, " "))
}

var _ auth.IAMService = (*server)(nil)

func (s *server) CreateAccount(a auth.Account) error {
	if a.Access == "" || a.Access == s.owner.Access || !a.Role.IsValid() {
		return fmt.Errorf("account %q with role %q is not possible", a.Access, a.Role)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.users[a.Access] = a
	return nil
}

func (s *server) GetUserAccount(access string) (auth.Account, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if access == s.owner.Access {
		return s.owner, nil
	}
	a, ok := s.users[access]
	if !ok {
		return auth.Account{}, auth.ErrNoSuchUser
	}
	return a, nil
}

func (s *server) ResolveAccounts(keys []string) (unknown []string, err error) {
	for _, k := range keys {
		if _, err := s.GetUserAccount(k); err != nil {
			unknown = append(unknown, k)
		}
	}
	return unknown, nil
}

func (s *server) DeleteUserAccount(access string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.users[access]; !ok {
		return auth.ErrNoSuchUser
	}
	delete(s.users, access)
	return nil
}

func (s *server) ListUserAccounts() ([]auth.Account, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := []auth.Account{s.owner}
	for _, a := range s.users {
		all = append(all, a)
	}
	return all, nil
}

func (s *server) UpdateUserAccount(string, auth.MutableProps) error {
	return errors.New("accounts are changed by commands")
}

func (s *server) Shutdown() error { return nil }

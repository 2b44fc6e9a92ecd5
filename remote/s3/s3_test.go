package s3_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"imagefs/remote"
	"imagefs/remote/remotetest"
	"imagefs/remote/s3"
)

// isolate hides the environment's settings and credentials from a test.
func isolate(t *testing.T) {
	t.Helper()
	for _, name := range []string{
		"AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE",
		"AWS_ACCESS_KEY_ID", "AWS_ACCESS_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SECRET_KEY", "AWS_SESSION_TOKEN",
		"AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_ROLE_ARN", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
		"AWS_CONTAINER_CREDENTIALS_FULL_URI", "AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE",
		"AWS_EC2_METADATA_SERVICE_ENDPOINT", "HTTP_PROXY", "http_proxy",
	} {
		t.Setenv(name, "")
	}
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", filepath.Join(home, "credentials"))
	t.Setenv("AWS_CONFIG_FILE", filepath.Join(home, "config"))
}

func config(srv *remotetest.Server) s3.Config {
	return s3.Config{
		Bucket: srv.Bucket, Endpoint: srv.Endpoint, Region: "us-east-1",
		AccessKey: srv.Key, SecretKey: s3.Secret(srv.Secret),
		Budget: 20 * time.Second, Stall: 10 * time.Second, // much, for busy machines
	}
}

func open(t *testing.T, c s3.Config) *s3.Store {
	t.Helper()
	s, err := s3.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func put(t *testing.T, s remote.Store, key string, b []byte, c remote.Cond) remote.Object {
	t.Helper()
	o, err := s.Put(t.Context(), key, bytes.NewReader(b), int64(len(b)), c)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func read(t *testing.T, s remote.Store, o remote.Object) ([]byte, error) {
	p := make([]byte, o.Size)
	return p, s.ReadRange(t.Context(), o, p, 0)
}

func wantErr(t *testing.T, what string, got, want error) {
	t.Helper()
	if !errors.Is(got, want) {
		t.Errorf("%s: got error %v, want %v", what, got, want)
	}
}

func TestStore(t *testing.T) {
	for _, v := range []struct {
		name   string
		prefix string
		region string
		faults remotetest.Faults
	}{
		{"plain", "", "us-east-1", remotetest.Faults{}},
		{"in a folder, short pages, region unknown", "a folder/b+c", "", remotetest.Faults{PageSize: 3}},
		{"bare If-Match", "", "us-east-1", remotetest.Faults{BareIfMatch: true}},
	} {
		t.Run(v.name, func(t *testing.T) {
			remotetest.Run(t, func(t *testing.T) remote.Store {
				srv := remotetest.NewServer(t)
				srv.Set(func(f *remotetest.Faults) { *f = v.faults })
				c := config(srv)
				c.Prefix, c.Region = v.prefix, v.region
				t.Cleanup(func() {
					for _, key := range srv.Keys() {
						if !strings.HasPrefix(key, v.prefix) {
							t.Errorf("key %q lies outside the folder", key)
						}
					}
				})
				return open(t, c)
			})
		})
	}
}

func TestParseURL(t *testing.T) {
	for _, c := range []struct{ url, bucket, prefix string }{
		{"s3://b", "b", ""},
		{"s3://b/", "b", ""},
		{"s3://b/p", "b", "p"},
		{"s3://b/p/q r?%/", "b", "p/q r?%"},
	} {
		bucket, prefix, err := s3.ParseURL(c.url)
		if err != nil || bucket != c.bucket || prefix != c.prefix {
			t.Errorf("%q: got %q, %q, %v, want %q, %q", c.url, bucket, prefix, err, c.bucket, c.prefix)
		}
	}
	for _, url := range []string{"", "b", "s3:b", "s3://", "s3:///p", "http://b/p", "s3://b/p//q", "s3://b/../q", "s3://key:secret@b/p"} {
		if _, _, err := s3.ParseURL(url); err == nil {
			t.Errorf("%q: no error", url)
		}
	}
}

func TestOpenTellsWhatIsWrong(t *testing.T) {
	isolate(t)
	srv := remotetest.NewServer(t)
	gone := remotetest.NewServer(t)
	gone.Stop()
	for _, v := range []struct {
		name   string
		change func(*s3.Config)
		faults remotetest.Faults
		want   error
	}{
		{"missing bucket", func(c *s3.Config) { c.Bucket = "missing" }, remotetest.Faults{}, remote.ErrNoBucket},
		{"unknown key", func(c *s3.Config) { c.AccessKey = "other" }, remotetest.Faults{}, remote.ErrCredentials},
		{"wrong secret", func(c *s3.Config) { c.SecretKey = "other" }, remotetest.Faults{}, remote.ErrCredentials},
		{"unknown key with status 404", nil, remotetest.Faults{Refuse: "InvalidAccessKeyId", RefuseStatus: 404}, remote.ErrCredentials},
		{"expired token with status 400", nil, remotetest.Faults{Refuse: "ExpiredToken", RefuseStatus: 400}, remote.ErrCredentials},
		{"no permission", nil, remotetest.Faults{Refuse: "AccessDenied"}, fs.ErrPermission},
		{"unknown key, region unknown", func(c *s3.Config) { c.AccessKey, c.Region = "other", "" }, remotetest.Faults{}, remote.ErrCredentials},
		{"no server", func(c *s3.Config) { c.Endpoint, c.Budget = gone.Endpoint, 300*time.Millisecond }, remotetest.Faults{}, remote.ErrUnavailable},
		{
			"busy server", func(c *s3.Config) { c.Budget = 300 * time.Millisecond },
			remotetest.Faults{Fail: 1000, FailStatus: 503, FailCode: "SlowDown"},
			remote.ErrUnavailable,
		},
		{
			"silent server", func(c *s3.Config) { c.Budget, c.Stall = 300*time.Millisecond, 50*time.Millisecond },
			remotetest.Faults{Delay: time.Minute},
			remote.ErrUnavailable,
		},
		{"no credentials", func(c *s3.Config) { c.AccessKey, c.SecretKey = "", "" }, remotetest.Faults{}, remote.ErrCredentials},
		{"unknown profile", func(c *s3.Config) { c.AccessKey, c.SecretKey, c.Profile = "", "", "nobody" }, remotetest.Faults{}, remote.ErrCredentials},
		{"anonymous", func(c *s3.Config) { c.AccessKey, c.SecretKey, c.Anonymous = "", "", true }, remotetest.Faults{}, fs.ErrPermission},
	} {
		t.Run(v.name, func(t *testing.T) {
			srv.Set(func(f *remotetest.Faults) { *f = v.faults })
			c := config(srv)
			if v.change != nil {
				v.change(&c)
			}
			_, err := s3.Open(t.Context(), c)
			wantErr(t, "open", err, v.want)
			for _, other := range []error{remote.ErrNoBucket, remote.ErrCredentials, remote.ErrUnavailable, fs.ErrPermission} {
				if other != v.want && errors.Is(err, other) {
					t.Errorf("error %v is also %v", err, other)
				}
			}
			if err != nil && (strings.Contains(err.Error(), "\n") || strings.Contains(err.Error(), srv.Secret)) {
				t.Errorf("error is not one line without secrets: %q", err)
			}
			t.Log(err)
		})
	}
}

func TestConfigIsChecked(t *testing.T) {
	isolate(t)
	for name, c := range map[string]s3.Config{
		"no bucket":           {},
		"too short a bucket":  {Bucket: "b"},
		"a bucket of blanks":  {Bucket: "my images"},
		"bad prefix":          {Bucket: "bucket", Prefix: "a/../b"},
		"bad path style":      {Bucket: "bucket", PathStyle: "other"},
		"half a key":          {Bucket: "bucket", AccessKey: "k"},
		"negative budget":     {Bucket: "bucket", Budget: -1},
		"endpoint with path":  {Bucket: "bucket", Endpoint: "http://127.0.0.1:1/path"},
		"endpoint scheme":     {Bucket: "bucket", Endpoint: "ftp://127.0.0.1"},
		"endpoint with user":  {Bucket: "bucket", Endpoint: "http://k:s@127.0.0.1"},
		"endpoint of nothing": {Bucket: "bucket", Endpoint: "https://"},
	} {
		if _, err := s3.Open(t.Context(), c); err == nil || errors.Is(err, remote.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if s := fmt.Sprintf("%v %+v %#v", s3.Config{SecretKey: "hidden"}, s3.Config{SecretKey: "hidden"}, s3.Config{SecretKey: "hidden"}); strings.Contains(s, "hidden") {
		t.Errorf("a secret is printed: %s", s)
	}
}

func TestCredentialsAreFound(t *testing.T) {
	file := func(t *testing.T, text string) string {
		path := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	profiles := "[default]\naws_access_key_id = wrong\naws_secret_access_key = wrong\n" +
		"[right]\naws_access_key_id = testkey\naws_secret_access_key = testsecret\n"
	// One server is the container's endpoint and the metadata service.
	metadata := func(t *testing.T) string {
		return "http://" + serve(t, func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/latest/api/token":
				io.WriteString(w, "token")
			case "/latest/meta-data/iam/security-credentials/":
				io.WriteString(w, "role")
			default:
				fmt.Fprintf(w, `{"Code":"Success","AccessKeyId":"testkey","SecretAccessKey":"testsecret","Token":"t","Expiration":%q}`,
					time.Now().Add(time.Hour).UTC().Format(time.RFC3339))
			}
		})
	}
	for name, set := range map[string]func(*testing.T, *s3.Config){
		"environment": func(t *testing.T, _ *s3.Config) {
			t.Setenv("AWS_ACCESS_KEY_ID", "testkey")
			t.Setenv("AWS_SECRET_ACCESS_KEY", "testsecret")
		},
		"credentials file, profile of the environment": func(t *testing.T, _ *s3.Config) {
			t.Setenv("AWS_SHARED_CREDENTIALS_FILE", file(t, profiles))
			t.Setenv("AWS_PROFILE", "right")
		},
		"credentials file and profile of the config, before the environment": func(t *testing.T, c *s3.Config) {
			t.Setenv("AWS_ACCESS_KEY_ID", "wrong")
			t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
			c.CredentialsFile, c.Profile = file(t, profiles), "right"
		},
		"container": func(t *testing.T, _ *s3.Config) {
			t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", metadata(t)+"/container")
		},
		"metadata service": func(t *testing.T, _ *s3.Config) {
			t.Setenv("AWS_EC2_METADATA_DISABLED", "")
			t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata(t))
		},
	} {
		t.Run(name, func(t *testing.T) {
			isolate(t)
			srv := remotetest.NewServer(t)
			c := config(srv)
			c.AccessKey, c.SecretKey = "", ""
			t.Setenv("AWS_ENDPOINT_URL_S3", srv.Endpoint)
			c.Endpoint = ""
			set(t, &c)
			put(t, open(t, c), "k", []byte("x"), remote.Cond{})
		})
	}
}

func TestMissingMetadataServiceCostsLittle(t *testing.T) {
	isolate(t)
	t.Setenv("AWS_EC2_METADATA_DISABLED", "")
	t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://"+serve(t, func(_ http.ResponseWriter, r *http.Request) {
		<-r.Context().Done()
	}))
	srv := remotetest.NewServer(t)
	c := config(srv)
	c.AccessKey, c.SecretKey = "", ""
	start := time.Now()
	_, err := s3.Open(t.Context(), c)
	wantErr(t, "open", err, remote.ErrCredentials)
	if d := time.Since(start); d > 8*time.Second {
		t.Errorf("took %v", d)
	}
}

func TestUploadsInParts(t *testing.T) {
	srv := remotetest.NewServer(t)
	s := open(t, config(srv))
	s.SetPartSizes(6<<20, 5<<20)
	want := remotetest.Bytes(1, 12<<20)
	for name, r := range map[string]io.Reader{
		"seekable": bytes.NewReader(append([]byte("skipped"), want...)),
		"stream":   io.MultiReader(bytes.NewReader(want)),
	} {
		if s, ok := r.(io.Seeker); ok {
			s.Seek(7, io.SeekStart)
		}
		srv.Set(func(f *remotetest.Faults) { f.Fail, f.FailStatus, f.FailCode = 2, 503, "SlowDown" })
		o, err := s.Put(t.Context(), name, r, int64(len(want)), remote.Cond{})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got, _ := srv.Get(name); !bytes.Equal(got, want) {
			t.Errorf("%s: other bytes were stored", name)
		}
		if got, err := read(t, s, o); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: other bytes were read, error %v", name, err)
		}
	}
	_, err := s.Put(t.Context(), "short", io.LimitReader(bytes.NewReader(want), 11<<20), 12<<20, remote.Cond{})
	wantErr(t, "short source", err, io.ErrUnexpectedEOF)
	if _, ok := srv.Get("short"); ok || srv.Uploads() != 0 {
		t.Errorf("a failed put left an object %v or %d uploads", ok, srv.Uploads())
	}
	srv.Take()
	put(t, s, "conditional", want, remote.Cond{Absent: true})
	for _, r := range srv.Take() {
		if r.Key == "conditional" && (r.Method == http.MethodPost || r.Query != "") {
			t.Errorf("a conditional put was not one request, but %s with %q", r.Method, r.Query)
		}
	}
}

func TestPartSizeKeepsTheNumberOfPartsInBounds(t *testing.T) {
	const least = 16 << 20
	for _, size := range []int64{1, least, 64 << 30, 156 << 30, 157 << 30, 5 << 40} {
		n := s3.PartSize(size, least)
		if parts := (size + n - 1) / n; parts > 10_000 || n < least {
			t.Errorf("%d bytes: %d parts of %d", size, parts, n)
		}
	}
}

func TestListingOfManyPages(t *testing.T) {
	srv := remotetest.NewServer(t)
	var want []string
	for i := range 40 {
		srv.Put(fmt.Sprintf("f/%02d", i), nil)
		srv.Put(fmt.Sprintf("f/%02d/below", i), nil)
		want = append(want, fmt.Sprintf("f/%02d", i))
	}
	srv.Put("f/", nil) // markers of folders are no objects
	srv.Put("f/bad\x01key", nil)
	srv.Set(func(f *remotetest.Faults) { f.PageSize = 7 })
	s := open(t, config(srv))
	// Pages fail on the way: the listing goes on where it was.
	n := 0
	srv.Set(func(f *remotetest.Faults) {
		f.Fail, f.FailStatus, f.FailCode = 3, 500, "InternalError"
		f.Only = func(*http.Request) bool { n++; return n%3 == 0 }
	})
	var got []string
	for o, err := range s.List(t.Context(), "f/") {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, o.Key)
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestStatsCount(t *testing.T) {
	srv := remotetest.NewServer(t)
	s := open(t, config(srv))
	o := put(t, s, "k", make([]byte, 1000), remote.Cond{})
	srv.Take()
	before := s.Stats()
	srv.Set(func(f *remotetest.Faults) { f.Cut, f.CutAfter = 1, 300 })
	if _, err := read(t, s, o); err != nil {
		t.Fatal(err)
	}
	got, want := s.Stats(), before
	want.Requests += 2
	want.Bytes += 1000
	want.Retries++
	want.Errors++
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if n := len(srv.Take()); n != 2 {
		t.Errorf("the server saw %d requests, want 2", n)
	}
}

func TestConnectionsAreKept(t *testing.T) {
	srv := remotetest.NewServer(t)
	s := open(t, config(srv))
	o := put(t, s, "k", make([]byte, 1<<20), remote.Cond{})
	ctx, opened := countConnections(context.Background())
	p := make([]byte, 1<<16)
	for range 20 {
		if err := s.ReadRange(ctx, o, p, 4096); err != nil {
			t.Fatal(err)
		}
	}
	if n := opened(); n > 1 {
		t.Errorf("20 reads opened %d connections", n)
	}
}

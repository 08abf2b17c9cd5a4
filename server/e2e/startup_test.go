package e2e

import (
	"database/sql"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maildispatch/maildispatch/store/storetest"
)

const secret = "hunter2-do-not-show"

// onlyLine wants a process that could not begin: nothing on stdout, one line on stderr with
// every one of the words, and exit code 2.
func onlyLine(t *testing.T, r ended, words ...string) {
	t.Helper()
	line, ok := strings.CutSuffix(r.stderr, "\n")
	if r.code != 2 || r.stdout != "" || !ok || strings.ContainsAny(line, "\r\n") || !strings.HasPrefix(line, "maildispatchd: ") {
		t.Errorf("not one line and exit code 2: code %d\nstdout %q\nstderr %q", r.code, r.stdout, r.stderr)
	}
	for _, bad := range []string{"panic", "goroutine", "0x", secret, "Usage"} {
		if strings.Contains(r.stderr, bad) {
			t.Errorf("%q is in %s", bad, r.stderr)
		}
	}
	for _, w := range words {
		if !strings.Contains(line, w) {
			t.Errorf("no %q in %s", w, line)
		}
	}
}

// TestStartFailures: whatever keeps serve from starting is said in one line, which names the
// thing, and the exit code is 2.
func TestStartFailures(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, content string, mode os.FileMode) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil { // whatever the umask
			t.Fatal(err)
		}
		return path
	}
	const goodKey = "1 MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=\n"
	key := file("key", goodKey, 0o600)
	plain := file("plain", "a file, no folder\n", 0o600)
	cert, certKey := certificateFiles(t)
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	unwritable := filepath.Join(dir, "unwritable")
	if err := os.Mkdir(unwritable, 0o500); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		unwritable = "/proc" // where even root makes no file
	}
	pg := fmt.Sprintf("postgres://app:%s@127.0.0.1:%d/mail?sslmode=disable", secret, deadPort(t))

	for name, c := range map[string]struct {
		args  []string
		env   string
		words []string
	}{
		"unknown flag":              {args: []string{"--colour=red"}, words: []string{"colour"}},
		"word that is no flag":      {args: []string{"now"}, words: []string{`"now"`}},
		"duration":                  {args: []string{"--batch-interval=often"}, words: []string{"batch-interval", "often"}},
		"negative duration":         {args: []string{"--batch-interval=-1s"}, words: []string{"batch-interval", "negative"}},
		"negative grace":            {args: []string{"--shutdown-grace=-1s"}, words: []string{"shutdown-grace", "negative"}},
		"switch":                    {args: []string{"--insecure=maybe"}, words: []string{"insecure", "maybe"}},
		"log format":                {args: []string{"--log-format=xml"}, words: []string{"log-format", "xml"}},
		"log level":                 {args: []string{"--log-level=loud"}, words: []string{"log-level", "loud"}},
		"environment":               {env: "MAILDISPATCH_BATCH_INTERVAL=often", words: []string{"MAILDISPATCH_BATCH_INTERVAL", "often"}},
		"beyond loopback":           {args: []string{"--listen=0.0.0.0:0"}, words: []string{"listen", "0.0.0.0", "plaintext", "--tls-cert", "--insecure"}},
		"nobody asked":              {args: []string{"--listen=0.0.0.0:0", "--insecure", "--auth=none"}, words: []string{"auth", "0.0.0.0", "loopback"}},
		"way to ask":                {args: []string{"--auth=maybe"}, words: []string{"auth", "maybe"}},
		"names without authorities": {args: []string{"--client-names=" + plain}, words: []string{"client-names", "client-ca"}},
		"every address":             {args: []string{"--listen=:0"}, words: []string{"listen", "--insecure"}},
		"no port":                   {args: []string{"--listen=127.0.0.1"}, words: []string{"listen", "127.0.0.1", "host:port"}},
		"busy port":                 {args: []string{"--listen=" + busy.Addr().String()}, words: []string{"listen", busy.Addr().String(), "in use"}},
		"scheme":                    {args: []string{"--database=mysql://app:" + secret + "@db/mail"}, words: []string{"database", "sqlite:", "postgres://"}},
		"no path":                   {args: []string{"--database=sqlite:"}, words: []string{"database", "sqlite:"}},
		"memory":                    {args: []string{"--database=sqlite::memory:"}, words: []string{"database", "file"}},
		"missing folder":            {args: []string{"--database=sqlite:" + dir + "/nowhere/mail.db"}, words: []string{"database", dir + "/nowhere"}},
		"file as folder":            {args: []string{"--database=sqlite:" + plain + "/mail.db"}, words: []string{"database", plain}},
		"unwritable folder":         {args: []string{"--database=sqlite:" + unwritable + "/mail.db", "--key-file=" + key}, words: []string{"database", unwritable}},
		"unwritable folder for key": {args: []string{"--database=sqlite:" + unwritable + "/mail.db"}, words: []string{"key", unwritable}},
		"folder as database":        {args: []string{"--database=sqlite:" + dir, "--key-file=" + key}, words: []string{"database", dir}},
		"garbage as database":       {args: []string{"--database=sqlite:" + file("garbage.db", strings.Repeat("garbage ", 1000), 0o600), "--key-file=" + key}, words: []string{"database"}},
		"no PostgreSQL":             {args: []string{"--database=" + pg, "--key-file=" + key}, words: []string{"database", "127.0.0.1", "refused"}},
		"no such host":              {args: []string{"--database=postgres://app:" + secret + "@db.invalid/mail?sslmode=disable", "--key-file=" + key}, words: []string{"database", "db.invalid"}},
		"no sslmode":                {args: []string{"--database=postgres://app:" + secret + "@127.0.0.1/mail", "--key-file=" + key}, words: []string{"database", "sslmode"}},
		"unknown sslmode":           {args: []string{"--database=" + pg + "ish", "--key-file=" + key}, words: []string{"database", "sslmode"}},
		"PostgreSQL address":        {args: []string{"--database=postgres://app:" + secret + "%zz@db/mail", "--key-file=" + key}, words: []string{"database"}},
		"PostgreSQL without key":    {args: []string{"--database=" + pg, "--key-file=" + dir + "/nokey"}, words: []string{"key-file", dir + "/nokey", "maildispatchd key create"}},
		"PostgreSQL, default key":   {args: []string{"--database=" + pg}, words: []string{"key-file", "maildispatch.key", "maildispatchd key create"}},
		"key of garbage":            {args: []string{"--key-file=" + file("garbage", secret+"\n", 0o600)}, words: []string{"key file", dir + "/garbage", "line 1"}},
		"short key":                 {args: []string{"--key-file=" + file("short", "1 aGVsbG8=\n", 0o600)}, words: []string{"key file", "line 1", "32 bytes"}},
		"empty key file":            {args: []string{"--key-file=" + file("empty", "# nothing\n", 0o600)}, words: []string{"key file", "no key"}},
		"endless key line":          {args: []string{"--key-file=" + file("endless", strings.Repeat("x", 1<<20), 0o600)}, words: []string{"key file"}},
		"key for the group":         {args: []string{"--key-file=" + file("group", goodKey, 0o640)}, words: []string{"key file", dir + "/group", "0640", "chmod 600"}},
		"key for the world":         {args: []string{"--key-file=" + file("world", goodKey, 0o604)}, words: []string{"key file", dir + "/world", "0604", "chmod 600"}},
		"folder as key":             {args: []string{"--key-file=" + dir}, words: []string{"key file", dir}},
		"destination without port":  {args: []string{"--smtp-destinations=public"}, words: []string{"smtp-destinations", "public", "TARGET:PORTS"}},
		"destination by name":       {args: []string{"--smtp-destinations=public:25,mail.example.com:25"}, words: []string{"smtp-destinations", "mail.example.com"}},
		"destination port":          {args: []string{"--smtp-destinations=public:70000"}, words: []string{"smtp-destinations", "70000"}},
		"localhost-smtp":            {args: []string{"--localhost-smtp=127.0.0.1"}, words: []string{"localhost-smtp", "host:port"}},
		"localhost-smtp port":       {args: []string{"--localhost-smtp=127.0.0.1:0"}, words: []string{"localhost-smtp", "port"}},
		"certificate without key":   {args: []string{"--tls-cert=" + cert}, words: []string{"tls-cert", "tls-key"}},
		"key without certificate":   {args: []string{"--tls-key=" + certKey}, words: []string{"tls-cert", "tls-key"}},
		"missing certificate":       {args: []string{"--tls-cert=" + dir + "/nocert", "--tls-key=" + certKey}, words: []string{"tls-cert", dir + "/nocert"}},
		"missing certificate key":   {args: []string{"--tls-cert=" + cert, "--tls-key=" + dir + "/nokey"}, words: []string{"tls-cert", dir + "/nokey"}},
		"certificate of garbage":    {args: []string{"--tls-cert=" + plain, "--tls-key=" + certKey}, words: []string{"tls-cert"}},
		"client-ca alone":           {args: []string{"--client-ca=" + cert}, words: []string{"client-ca", "tls-cert"}},
		"missing client-ca":         {args: []string{"--tls-cert=" + cert, "--tls-key=" + certKey, "--client-ca=" + dir + "/noca"}, words: []string{"client-ca", dir + "/noca"}},
		"client-ca of garbage":      {args: []string{"--tls-cert=" + cert, "--tls-key=" + certKey, "--client-ca=" + plain}, words: []string{"client-ca", "PEM"}},
	} {
		t.Run(name, func(t *testing.T) {
			var env []string
			if c.env != "" {
				env = append(env, c.env)
			}
			args := []string{"serve"}
			if !strings.Contains(strings.Join(c.args, " "), "--listen") {
				// where it starts after all, the test says so and does not meet another
				args = append(args, "--listen=127.0.0.1:0")
			}
			onlyLine(t, run(t, env, append(args, c.args...)...), c.words...)
		})
	}
}

// TestStartOnAnothersDatabase: SQLite serves one process; the second says so and does the first
// no harm.
func TestStartOnAnothersDatabase(t *testing.T) {
	t.Parallel()
	dsn := storetest.SQLiteDSN(t)
	s := start(t, dsn)
	onlyLine(t, run(t, nil, "serve", "--listen=127.0.0.1:0", "--database="+dsn), "database", strings.TrimPrefix(dsn, "sqlite:"), "another process", "PostgreSQL")
	onlyLine(t, run(t, nil, "migrate", "--database="+dsn), "database", "another process")
	if r := run(t, nil, "health", "--target="+s.addr); r.code != 0 {
		t.Errorf("the first: %+v", r)
	}
}

// TestStartRefusedByPostgreSQL: a wrong password and a database that is not there.
func TestStartRefusedByPostgreSQL(t *testing.T) {
	t.Parallel()
	c, err := storetest.StartCluster()
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("postgres", c.DSN())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	// Clusters of tests trust everybody: this one asks app for its password.
	const hba = "host all app 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n"
	if err := os.WriteFile(filepath.Join(c.Dir, "pg_hba.conf"), []byte(hba), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, q := range []string{"create role app login password 'right'", "create database mail owner app", "select pg_reload_conf()"} {
		if _, err := db.Exec(q); err != nil {
			t.Fatal(err)
		}
	}
	app, err := sql.Open("postgres", fmt.Sprintf("postgres://app:wrong@127.0.0.1:%d/mail?sslmode=disable", c.Port))
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	// each ping logs in
	app.SetMaxIdleConns(0)
	for ctx := timeout(t); app.PingContext(ctx) == nil || ctx.Err() != nil; {
		// until the server has read its file again
		if ctx.Err() != nil {
			t.Fatal("PostgreSQL goes on trusting everybody")
		}
	}
	key := filepath.Join(t.TempDir(), "key")
	if r := run(t, nil, "key", "create", key); r.code != 0 {
		t.Fatalf("%+v", r)
	}
	at := func(password, name string) string {
		return fmt.Sprintf("--database=postgres://app:%s@127.0.0.1:%d/%s?sslmode=disable", password, c.Port, name)
	}
	onlyLine(t, run(t, nil, "serve", "--listen=127.0.0.1:0", "--key-file="+key, at(secret, "mail")), "database", "password authentication failed", "app")
	onlyLine(t, run(t, nil, "serve", "--listen=127.0.0.1:0", "--key-file="+key, at("right", "letters")), "database", "letters", "does not exist")
	if r := run(t, nil, "migrate", at("right", "mail")); r.code != 0 { // so it was the password
		t.Errorf("the right password: %+v", r)
	}
	if _, err := db.Exec("create role guest login"); err != nil {
		t.Fatal(err)
	}
	guest := fmt.Sprintf("--database=postgres://guest@127.0.0.1:%d/postgres?sslmode=disable", c.Port)
	onlyLine(t, run(t, nil, "serve", "--listen=127.0.0.1:0", "--key-file="+key, guest), "database", "permission denied")
}

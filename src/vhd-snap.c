/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * vhd-snap: an empty differencing child per disk, all or none.
 *
 * Live, the serving plugins switch to the children in two phases: every one prepares (its pointer
 * durably names the child), then every one commits. Until the first commit all can be undone.
 * A child is removed only when it is certain that no pointer names it: a server that died between
 * prepare and its answer is started again on what its pointer says.
 */
#include "config.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <jansson.h>

#include "cli.h"
#include "io.h"

#define MAX_REPLY (1u << 20)
#define REPLY_TIMEOUT 600 /* seconds; a flush of a slow disk is waited for */

static const char help[] =
	"Usage: vhd-snap [OPTION]... PARENT...\n"
	"       vhd-snap [OPTION]... --live=[DISK=]SOCKET... [PARENT...]\n"
	"\n"
	"Make an empty differencing child of each PARENT, all or none, and print the paths\n"
	"of the children. With --live the servers of the disks switch to them.\n"
	"\n"
	"  -o, --output=CHILD         name of the child (one PARENT only)\n"
	"      --directory=DIR        put the children into DIR, not beside their parents\n"
	"      --live=[DISK=]SOCKET   control socket of the nbdkit that serves a disk; DISK is\n"
	"                             checked: its path, or its name in the VM (repeatable)\n"
	"  -f, --force                replace an existing CHILD\n"
	"  -n, --dry-run              check everything and change nothing\n"
	"  -0, --null                 end each printed path with a NUL byte, not a newline\n"
	"      --json                 print one JSON object instead of paths\n"
	"      --parent-dir=DIR       parents may also lie below DIR (repeatable)\n"
	"      --parent-anywhere      parents may lie anywhere\n"
	"  -q, --quiet                no notes on stderr\n"
	"  -h, --help                 this text\n"
	"  -V, --version              the version\n";

enum { OPT_DIRECTORY = CLI_TOOL, OPT_LIVE };

/* One disk and its child. */
struct snap {
	char *parent;
	char *child;
	bool created;
	bool keep; /* the child may be named by a pointer: not ours to remove */
	/* live only */
	char *socket;
	char *disk; /* as asserted with DISK=, or NULL */
	int fd;
	char *pointer;
	bool prepared, committed;
	uint64_t blocked_us;
};

struct job {
	struct cli_common common;
	const char *output, *directory;
	bool force, dry_run, null, json, live;
	struct snap *snaps;
	size_t n;
};

static int no_memory(struct img_err *err)
{
	return img_err_errno(err, ENOMEM, "vhd-snap");
}

static bool same_file(const char *a, const char *b)
{
	struct stat sa, sb;

	return stat(a, &sa) == 0 && stat(b, &sb) == 0 && sa.st_dev == sb.st_dev &&
	       sa.st_ino == sb.st_ino;
}

/* Names */

/* Length of NAME without its extension and without the suffix that an earlier snapshot added. */
static size_t stem_length(const char *name)
{
	static const char form[] = "_xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx";
	const size_t len = sizeof(form) - 1;
	const char *dot = strrchr(name, '.');
	size_t n = dot && dot > name ? (size_t)(dot - name) : strlen(name), i;

	if (n <= len)
		return n;
	for (i = 0; i < len; i++) {
		char c = name[n - len + i];

		if (form[i] == 'x' ? !strchr("0123456789ABCDEFabcdef", c) : c != form[i])
			return n;
	}
	return n - len;
}

/* PARENT's stem and a unique suffix, as Hyper-V does, in DIR or beside the file PARENT itself. */
static char *default_child(const char *parent, const char *dir, struct img_err *err)
{
	char *real = realpath(parent, NULL), *folder = NULL, *name = NULL, uuid[IMG_UUID_STR];
	uint8_t bytes[16];
	struct stat st;
	const char *base;
	char *p;

	if (!real) {
		img_err_errno(err, errno, "%s", parent);
		return NULL;
	}
	base = io_basename(real);
	if (!dir)
		dir = folder =
			io_dirname(lstat(parent, &st) == 0 && S_ISLNK(st.st_mode) ? real : parent);
	img_uuid_new(bytes);
	img_uuid_str(bytes, uuid);
	for (p = uuid; *p; p++)
		if (*p >= 'a' && *p <= 'f')
			*p = (char)(*p - 'a' + 'A');
	if (!dir || asprintf(&name, "%s%s%.*s_%s.avhd", dir, dir[strlen(dir) - 1] == '/' ? "" : "/",
			     (int)stem_length(base), base, uuid) < 0) {
		name = NULL;
		no_memory(err);
	}
	free(folder);
	free(real);
	return name;
}

static int name_children(struct job *j, struct img_err *err)
{
	struct stat st;
	size_t i;

	if (j->directory && (stat(j->directory, &st) < 0 || !S_ISDIR(st.st_mode)))
		return img_err_set(err, IMG_CANTCREAT, "%s: no such folder", j->directory);
	for (i = 0; i < j->n; i++) {
		struct snap *s = &j->snaps[i];

		s->child =
			j->output ? strdup(j->output) : default_child(s->parent, j->directory, err);
		if (!s->child)
			return no_memory(err);
	}
	return 0;
}

/* Checks before anything is made */

/* How the parent is opened: live, the plugin holds it locked, and checks the child itself. */
static struct img_open parent_opts(const struct job *j)
{
	struct img_open opts = j->common.open;

	opts.unlocked = j->live;
	return opts;
}

static int check_existing(const struct job *j, const struct snap *s, struct img_chain *parent,
			  struct img_err *err)
{
	struct img_open opts = {.writable = true, .single = true};
	struct img_err why = {0};
	struct img_chain *c = NULL;
	struct stat st;

	if (lstat(s->child, &st) < 0)
		return 0;
	if (!j->force)
		return img_err_set(err, IMG_CANTCREAT,
				   "%s: exists; nothing is overwritten without --force", s->child);
	if (stat(s->child, &st) < 0)
		return 0; /* a symlink to nothing */
	if (img_find_layer(parent, s->child, &why) >= 0)
		return img_err_set(err, IMG_DATA, "%s: belongs to the chain of %s", s->child,
				   s->parent);
	img_err_clear(&why);
	if (img_open(&c, s->child, &opts, &why) < 0 && why.code == IMG_AGAIN)
		return img_err_set(err, why.code, "%s", why.msg);
	img_close(c);
	return 0;
}

static int check_disks(const struct job *j, struct img_err *err)
{
	struct img_open opts = parent_opts(j);
	size_t i;

	for (i = 0; i < j->n; i++) {
		const struct snap *s = &j->snaps[i];
		struct img_chain *c = NULL;
		int ret = img_open(&c, s->parent, &opts, err);

		if (ret == 0)
			ret = check_existing(j, s, c, err);
		if (ret == 0 && img_layers(c) == IMG_MAX_LAYERS)
			ret = img_err_set(err, IMG_DATA, "%s: has %d layers, no more are allowed",
					  s->parent, IMG_MAX_LAYERS);
		img_close(c);
		if (ret < 0)
			return -1;
	}
	return 0;
}

static int check_interrupt(struct img_err *err)
{
	if (cli_interrupted())
		return img_err_set(err, IMG_AGAIN, "interrupted");
	return 0;
}

static int create_children(struct job *j, struct img_err *err)
{
	struct img_open opts = parent_opts(j);
	size_t i;

	for (i = 0; i < j->n; i++) {
		struct snap *s = &j->snaps[i];

		if (check_interrupt(err) < 0 ||
		    img_snapshot(s->parent, s->child, &opts, j->force, err) < 0)
			return -1;
		s->created = true;
	}
	return 0;
}

/* The control sockets */

static int lost(struct snap *s, struct img_err *err, const char *what)
{
	/* A prepare or commit that was not answered may have been carried out. */
	s->keep = s->created;
	close(s->fd);
	s->fd = -1;
	return img_err_set(err, IMG_UNAVAIL, "%s: the server of the disk %s", s->socket, what);
}

static int receive_line(struct snap *s, char **line, size_t *len, struct img_err *err)
{
	size_t cap = 0;
	ssize_t n;
	char *p;

	*line = NULL;
	*len = 0;
	do {
		if (*len == cap) {
			cap = cap ? 2 * cap : 4096;
			p = cap <= MAX_REPLY ? realloc(*line, cap) : NULL;
			if (!p)
				return lost(s, err, "sent too long a reply");
			*line = p;
		}
		n = recv(s->fd, *line + *len, cap - *len, 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
			return lost(s, err, "does not answer");
		if (n <= 0)
			return lost(s, err, "closed the connection");
		*len += (size_t)n;
	} while ((*line)[*len - 1] != '\n');
	return 0;
}

static int send_all(struct snap *s, const char *buf, size_t len, struct img_err *err)
{
	ssize_t n;

	for (; len; buf += n, len -= (size_t)n) {
		n = send(s->fd, buf, len, MSG_NOSIGNAL);
		if (n < 0 && errno == EINTR)
			n = 0;
		else if (n < 0)
			return lost(s, err, "closed the connection");
	}
	return 0;
}

/* *REPLY (may be NULL) is the answer if it is ok; else its error is reported. */
static int request(struct snap *s, const char *command, const char *child, json_t **reply,
		   struct img_err *err)
{
	json_t *req = child ? json_pack("{s:s, s:s}", "command", command, "child", child)
			    : json_pack("{s:s}", "command", command);
	char *text = req ? json_dumps(req, JSON_COMPACT) : NULL, *line = NULL;
	const char *message = "refused, and does not say why";
	json_t *r = NULL;
	int ret = -1, ok = 0, code = IMG_IO, keep = 0;
	size_t len;

	if (!text) {
		img_err_set(err, IMG_USAGE, "%s: a live snapshot needs a name that is valid UTF-8",
			    child ? child : command);
		goto out;
	}
	if (s->fd < 0) {
		lost(s, err, "is gone");
		goto out;
	}
	len = strlen(text);
	text[len++] = '\n'; /* in the place of the NUL */
	if (send_all(s, text, len, err) < 0 || receive_line(s, &line, &len, err) < 0)
		goto out;
	r = json_loadb(line, len, 0, NULL);
	if (!r || json_unpack(r, "{s:b}", "ok", &ok)) {
		lost(s, err, "does not speak the control protocol");
	} else if (!ok) {
		json_unpack(r, "{s?i, s?s, s?b}", "code", &code, "error", &message, "keep", &keep);
		s->keep = s->keep || keep;
		img_err_set(err, code > 0 ? code : IMG_IO, "%s", message);
	} else {
		ret = 0;
		if (reply)
			*reply = json_incref(r);
	}
out:
	json_decref(r);
	json_decref(req);
	free(text);
	free(line);
	return ret;
}

static int connect_socket(struct snap *s, struct img_err *err)
{
	struct sockaddr_un addr = {.sun_family = AF_UNIX};
	struct timeval limit = {.tv_sec = REPLY_TIMEOUT};

	if (strlen(s->socket) >= sizeof(addr.sun_path))
		return img_err_set(err, IMG_USAGE, "%s: the name is too long for a socket",
				   s->socket);
	snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", s->socket);
	s->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (s->fd < 0)
		return img_err_errno(err, errno, "socket");
	setsockopt(s->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(s->fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
	if (connect(s->fd, (struct sockaddr *)&addr, sizeof(addr)) < 0) {
		if (errno == EACCES || errno == EPERM)
			return img_err_errno(err, errno, "%s", s->socket);
		return img_err_set(err, IMG_UNAVAIL, "%s: nobody serves a disk there: %s",
				   s->socket, strerror(errno));
	}
	return 0;
}

/* Asks the server what it serves: the leaf becomes the parent. */
static int ask_status(struct snap *s, struct img_err *err)
{
	const char *file = NULL, *leaf = NULL;
	json_t *reply = NULL;
	int ret = -1;

	if (connect_socket(s, err) < 0 || request(s, "status", NULL, &reply, err) < 0)
		return -1;
	if (json_unpack(reply, "{s:s, s:s}", "file", &file, "leaf", &leaf)) {
		lost(s, err, "does not say what it serves");
		goto out;
	}
	if (s->disk && !same_file(s->disk, leaf) && strcmp(s->disk, io_basename(file)) != 0) {
		img_err_set(err, IMG_DATA, "%s: serves %s as %s, not %s", s->socket, leaf, file,
			    s->disk);
		goto out;
	}
	s->parent = strdup(leaf);
	s->pointer = strdup(file);
	ret = s->parent && s->pointer ? 0 : no_memory(err);
out:
	json_decref(reply);
	return ret;
}

/* Puts the snaps into the order of the PARENTs, each of which one socket must serve. */
static int match_parents(struct job *j, char *const *parents, size_t n, struct img_err *err)
{
	size_t i, k;

	if (n && n != j->n)
		return img_err_set(err, IMG_USAGE,
				   "%zu disks but %zu sockets: each disk needs its own --live", n,
				   j->n);
	for (i = 0; i < n; i++) {
		struct snap tmp;

		for (k = i; k < j->n && !same_file(parents[i], j->snaps[k].parent); k++)
			;
		if (k == j->n)
			return img_err_set(err, IMG_DATA, "%s: none of the sockets serves it",
					   parents[i]);
		tmp = j->snaps[i];
		j->snaps[i] = j->snaps[k];
		j->snaps[k] = tmp;
	}
	return 0;
}

/* Undo */

/* After prepare: whether the pointer names the child is the server's word and our own look. */
static void withdraw(struct snap *s)
{
	struct img_err err = {0};

	if (s->prepared && request(s, "abort", NULL, NULL, &err) < 0)
		cli_warn("%s", err.msg);
	s->prepared = false;
	if (s->created && !s->committed && !s->keep && s->pointer &&
	    same_file(s->pointer, s->child))
		s->keep = true;
	if (!s->created || s->committed)
		return;
	if (s->keep) {
		cli_warn("%s: kept, because %s may name it; it is empty and hides nothing",
			 s->child, s->pointer);
		return;
	}
	img_err_clear(&err);
	if (io_unlink(s->child, &err) < 0)
		cli_warn("%s", err.msg);
	s->created = false;
}

static void undo(struct job *j)
{
	size_t i;

	for (i = j->n; i-- > 0;)
		withdraw(&j->snaps[i]);
}

/* The two phases */

static int prepare_all(struct job *j, struct img_err *err)
{
	size_t i;

	for (i = 0; i < j->n; i++) {
		struct snap *s = &j->snaps[i];
		char *real = realpath(s->child, NULL);
		int ret;

		if (!real)
			return img_err_errno(err, errno, "%s", s->child);
		ret = check_interrupt(err);
		if (ret == 0)
			ret = request(s, "prepare", real, NULL, err);
		free(real);
		if (ret < 0)
			return -1;
		s->prepared = true;
	}
	return check_interrupt(err);
}

static int commit_one(struct job *j, struct snap *s, struct img_err *err)
{
	json_t *reply = NULL, *us;

	s->prepared = false; /* whatever the answer: a failed commit has aborted */
	if (request(s, "commit", NULL, &reply, err) < 0)
		return -1;
	s->committed = true;
	us = json_object_get(reply, "blocked_us");
	s->blocked_us = (uint64_t)json_integer_value(us);
	json_decref(reply);
	if (!j->common.quiet)
		fprintf(stderr, "%s: guest held off for %.2f ms\n", s->parent,
			(double)s->blocked_us / 1000);
	return 0;
}

/*
 * After the first commit there is no way back, so every other one is tried; a failure of one leaves
 * that disk on its old leaf, and the result is reported disk by disk.
 */
static int commit_all(struct job *j, struct img_err *err)
{
	bool begun = false;
	size_t i;
	int ret = 0;

	for (i = 0; i < j->n; i++) {
		struct snap *s = &j->snaps[i];
		struct img_err why = {0};

		if (commit_one(j, s, &why) == 0) {
			begun = true;
			continue;
		}
		ret = img_err_set(err, why.code, "%s", why.msg);
		/* A server that died is started again on the child: that counts as a commit. */
		begun = begun || s->fd < 0;
		if (!begun)
			return ret;
		cli_warn("%s: %s", s->parent,
			 s->fd < 0 ? "its server died during the switch" : "not switched");
	}
	return ret;
}

static int snap_live(struct job *j, struct img_err *err)
{
	if (create_children(j, err) < 0 || prepare_all(j, err) < 0)
		return -1;
	return commit_all(j, err);
}

/* Results */

static bool is_result(const struct job *j, const struct snap *s)
{
	return !j->live || j->dry_run || s->committed;
}

static bool any_committed(const struct job *j)
{
	size_t i;

	for (i = 0; i < j->n; i++)
		if (j->snaps[i].committed)
			return true;
	return false;
}

static void print_json(const struct job *j)
{
	const char *comma = "";
	size_t i;

	printf("{\"version\":1,\"snapshots\":[");
	for (i = 0; i < j->n; i++) {
		const struct snap *s = &j->snaps[i];

		if (!is_result(j, s))
			continue;
		printf("%s{\"parent\":", comma);
		cli_json_string(stdout, s->parent);
		printf(",\"child\":");
		cli_json_string(stdout, s->child);
		if (s->committed)
			printf(",\"blocked_us\":%llu", (unsigned long long)s->blocked_us);
		printf("}");
		comma = ",";
	}
	printf("]}\n");
}

static void print_children(const struct job *j)
{
	size_t i;

	if (j->json) {
		print_json(j);
		return;
	}
	for (i = 0; i < j->n; i++)
		if (is_result(j, &j->snaps[i]))
			printf("%s%c", j->snaps[i].child, j->null ? '\0' : '\n');
}

/* The command line */

static struct snap *add_snap(struct job *j)
{
	struct snap *s = realloc(j->snaps, (j->n + 1) * sizeof(*s));

	if (!s)
		return NULL;
	j->snaps = s;
	s = &j->snaps[j->n++];
	memset(s, 0, sizeof(*s));
	s->fd = -1;
	return s;
}

static bool is_socket(const char *path)
{
	struct stat st;

	return stat(path, &st) == 0 && S_ISSOCK(st.st_mode);
}

/* [DISK=]SOCKET; both may hold '=': the whole, or what follows the first '=' that leaves a socket.
 */
static int add_live(struct job *j, const char *arg, struct img_err *err)
{
	const char *eq = is_socket(arg) ? NULL : strchr(arg, '=');
	struct snap *s = add_snap(j);

	while (eq && !is_socket(eq + 1) && strchr(eq + 1, '='))
		eq = strchr(eq + 1, '=');
	if (!s)
		return no_memory(err);
	s->socket = strdup(eq ? eq + 1 : arg);
	if (eq)
		s->disk = strndup(arg, (size_t)(eq - arg));
	return s->socket && (s->disk || !eq) ? 0 : no_memory(err);
}

static void parse(struct job *j, int argc, char **argv, struct img_err *err)
{
	static const struct option options[] = {
		{"output", required_argument, NULL, 'o'},
		{"directory", required_argument, NULL, OPT_DIRECTORY},
		{"live", required_argument, NULL, OPT_LIVE},
		{"force", no_argument, NULL, 'f'},
		{"dry-run", no_argument, NULL, 'n'},
		{"null", no_argument, NULL, '0'},
		{"json", no_argument, NULL, CLI_JSON},
		{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'V'},
		{"quiet", no_argument, NULL, 'q'},
		CLI_CHAIN_LONG,
		{0},
	};
	int opt;

	while ((opt = getopt_long(argc, argv, CLI_COMMON_SHORT "o:fn0", options, NULL)) != -1) {
		if (opt == 'o')
			j->output = optarg;
		else if (opt == OPT_DIRECTORY)
			j->directory = optarg;
		else if (opt == OPT_LIVE)
			add_live(j, optarg, err);
		else if (opt == 'f')
			j->force = true;
		else if (opt == 'n')
			j->dry_run = true;
		else if (opt == '0')
			j->null = true;
		else if (opt == CLI_JSON)
			j->json = true;
		else if (!cli_common(&j->common, opt, optarg))
			cli_usage("unknown option");
	}
	j->live = j->n > 0;
	if (!j->live && optind == argc)
		cli_usage("no PARENT given");
	if (j->output && j->directory)
		cli_usage("--output and --directory exclude each other");
	if (j->output && (j->live ? j->n : (size_t)(argc - optind)) > 1)
		cli_usage("--output is for one PARENT only");
	if ((j->output && !*j->output) || (j->directory && !*j->directory))
		cli_usage("an empty name");
}

/* Fills in the parents, from the command line or from the servers. */
static int find_parents(struct job *j, char *const *parents, size_t n, struct img_err *err)
{
	struct snap *s;
	size_t i;

	if (j->live) {
		for (i = 0; i < j->n; i++)
			if (ask_status(&j->snaps[i], err) < 0)
				return -1;
		return match_parents(j, parents, n, err);
	}
	for (i = 0; i < n; i++) {
		s = add_snap(j);
		if (!s || !(s->parent = strdup(parents[i])))
			return no_memory(err);
	}
	return 0;
}

static void job_free(struct job *j)
{
	size_t i;

	for (i = 0; i < j->n; i++) {
		struct snap *s = &j->snaps[i];

		if (s->fd >= 0)
			close(s->fd);
		free(s->parent);
		free(s->child);
		free(s->socket);
		free(s->disk);
		free(s->pointer);
	}
	free(j->snaps);
}

int main(int argc, char **argv)
{
	struct job j = {0};
	struct img_err err = {0};
	int ret = -1;

	cli_init(argv, "vhd-snap", help);
	cli_common_init(&j.common);
	parse(&j, argc, argv, &err);
	cli_catch_signals();
	if (!err.code && find_parents(&j, argv + optind, (size_t)(argc - optind), &err) == 0 &&
	    name_children(&j, &err) == 0 && check_disks(&j, &err) == 0)
		ret = j.dry_run ? 0 : j.live ? snap_live(&j, &err) : create_children(&j, &err);
	if (ret < 0)
		undo(&j);
	if (ret == 0 || any_committed(&j))
		print_children(&j);
	job_free(&j);
	return cli_exit(ret < 0 ? cli_fail(&err) : 0);
}

// Fused CPU kernels for training: mHC site, stream expansion, SwiGLU, softmax with a sink.
// Rows are bfloat16 or float32, arithmetic is float32. Every forward has its exact backward.
#include <torch/extension.h>
#include <ATen/Parallel.h>
#include <vector>
#include <cmath>
#include <cstring>

using at::Tensor;
constexpr int S = 4, C = 24, LANES = 16;

static inline float up(uint16_t v) { union { uint32_t u; float f; } x; x.u = uint32_t(v) << 16; return x.f; }
static inline float up(float v) { return v; }
template <class Row> static inline Row to(float v);
template <> inline float to<float>(float v) { return v; }
template <> inline uint16_t to<uint16_t>(float v) {
  union { float f; uint32_t u; } x; x.f = v;
  return uint16_t((x.u + 0x7FFFu + ((x.u >> 16) & 1u)) >> 16);
}
template <class Row> static const Row* rows(const Tensor& t) { return reinterpret_cast<const Row*>(t.const_data_ptr()); }
template <class Row> static Row* rows_out(Tensor& t) { return reinterpret_cast<Row*>(t.data_ptr()); }

// ---- Sinkhorn on 4x4 matrices, 16 tokens at a time (matrix entry outermost) -------------------------

static void sinkhorn_forward(const float* z, float* out, int iters, float eps, float* hist, float* inv) {
  float m[16][LANES];
  for (int j = 0; j < 4; j++)
    for (int t = 0; t < LANES; t++) {
      float a = z[(j*4)*LANES+t], b = z[(j*4+1)*LANES+t], c = z[(j*4+2)*LANES+t], d = z[(j*4+3)*LANES+t];
      float mx = std::max(std::max(a,b), std::max(c,d));
      a = std::exp(a-mx); b = std::exp(b-mx); c = std::exp(c-mx); d = std::exp(d-mx);
      float r = 1.f/(a+b+c+d);
      m[j*4][t]=a*r; m[j*4+1][t]=b*r; m[j*4+2][t]=c*r; m[j*4+3][t]=d*r;
    }
  if (hist) std::memcpy(hist, m, sizeof m);  // softmax output, before eps
  for (int i = 0; i < 16; i++) for (int t = 0; t < LANES; t++) m[i][t] += eps;
  for (int step = 0; step < 2*iters-1; step++) {
    bool column = step % 2 == 0;
    for (int a = 0; a < 4; a++) {
      int i0 = column ? a : a*4, st = column ? 4 : 1;
      for (int t = 0; t < LANES; t++) {
        float r = 1.f/(m[i0][t]+m[i0+st][t]+m[i0+2*st][t]+m[i0+3*st][t]+eps);
        m[i0][t]*=r; m[i0+st][t]*=r; m[i0+2*st][t]*=r; m[i0+3*st][t]*=r;
        if (inv) inv[(step*4+a)*LANES+t] = r;
      }
    }
    if (hist) std::memcpy(hist + (step+1)*16*LANES, m, sizeof m);
  }
  if (out) std::memcpy(out, m, sizeof m);
}

static void sinkhorn_backward(const float* hist, const float* inv, float g[16][LANES], int iters) {
  for (int step = 2*iters-2; step >= 0; step--) {
    bool column = step % 2 == 0;
    const float* y = hist + (step+1)*16*LANES;
    for (int a = 0; a < 4; a++) {
      int i0 = column ? a : a*4, st = column ? 4 : 1;
      for (int t = 0; t < LANES; t++) {
        float d = 0; for (int k = 0; k < 4; k++) d += g[i0+k*st][t]*y[(i0+k*st)*LANES+t];
        float r = inv[(step*4+a)*LANES+t];
        for (int k = 0; k < 4; k++) g[i0+k*st][t] = (g[i0+k*st][t]-d)*r;
      }
    }
  }
  for (int j = 0; j < 4; j++)
    for (int t = 0; t < LANES; t++) {
      float d = 0; for (int k = 0; k < 4; k++) d += g[j*4+k][t]*hist[(j*4+k)*LANES+t];
      for (int k = 0; k < 4; k++) g[j*4+k][t] = hist[(j*4+k)*LANES+t]*(g[j*4+k][t]-d);
    }
}

static int group_of(int i) { return i < 4 ? 0 : i < 8 ? 1 : 2; }

// ---- mHC site: coefficients from (X, X @ fn^T), and the normed collapse with the previous site's mix ----
// X [N,4,D], m [N,24] f32, pre_in [N,4] f32, w [D], scale [3], base [24] f32
template <class Row> static std::vector<Tensor> site_forward(Tensor X, Tensor m, Tensor pre_in, Tensor w, Tensor scale, Tensor base,
                                 int64_t iters, double hc_eps, double eps) {
  int64_t N = X.size(0), D = X.size(2);
  auto f32 = pre_in.options();
  Tensor x = at::empty({N, D}, X.options()), pre = at::empty({N, S}, f32), post = at::empty({N, S}, f32),
         comb = at::empty({N, 16}, f32), r = at::empty({N}, f32);
  const Row* Xp = rows<Row>(X); Row* xp = rows_out<Row>(x);
  const float *mp = m.data_ptr<float>(), *pi = pre_in.data_ptr<float>(), *wp = w.data_ptr<float>(),
              *sc = scale.data_ptr<float>(), *bs = base.data_ptr<float>();
  float *prep = pre.data_ptr<float>(), *postp = post.data_ptr<float>(), *cp = comb.data_ptr<float>(), *rp = r.data_ptr<float>();
  int64_t blocks = (N + LANES - 1) / LANES;
  at::parallel_for(0, blocks, 4, [&](int64_t b0, int64_t b1) {
    std::vector<float> c(D);
    for (int64_t b = b0; b < b1; b++) {
      float z[16][LANES] = {}, out[16][LANES];
      int n = std::min<int64_t>(LANES, N - b*LANES);
      for (int t = 0; t < n; t++) {
        int64_t row = b*LANES + t;
        const Row* xr = Xp + row*S*D;
        float ss = 0; for (int64_t i = 0; i < S*D; i++) { float v = up(xr[i]); ss += v*v; }
        float rr = 1.f/std::sqrt(ss/(S*D) + float(eps)); rp[row] = rr;
        for (int i = 0; i < C; i++) {
          float v = mp[row*C+i]*rr*sc[group_of(i)] + bs[i];
          if (i < 4) prep[row*S+i] = 1.f/(1.f+std::exp(-v)) + float(hc_eps);
          else if (i < 8) postp[row*S+i-4] = 2.f/(1.f+std::exp(-v));
          else z[i-8][t] = v;
        }
        float p0 = pi[row*S], p1 = pi[row*S+1], p2 = pi[row*S+2], p3 = pi[row*S+3], cs = 0;
        for (int64_t d = 0; d < D; d++) {
          float v = p0*up(xr[d]) + p1*up(xr[D+d]) + p2*up(xr[2*D+d]) + p3*up(xr[3*D+d]);
          c[d] = v; cs += v*v;
        }
        float cr = 1.f/std::sqrt(cs/D + float(eps));
        for (int64_t d = 0; d < D; d++) xp[row*D+d] = to<Row>(c[d]*cr*wp[d]);
      }
      sinkhorn_forward(&z[0][0], &out[0][0], iters, hc_eps, nullptr, nullptr);
      for (int t = 0; t < n; t++) for (int i = 0; i < 16; i++) cp[(b*LANES+t)*16+i] = out[i][t];
    }
  });
  return {x, pre, post, comb, r};
}

template <class Row> static std::vector<Tensor> site_backward(Tensor X, Tensor m, Tensor r, Tensor pre_in, Tensor w, Tensor scale, Tensor base,
                                  Tensor gx, Tensor gpre, Tensor gpost, Tensor gcomb,
                                  int64_t iters, double hc_eps, double eps) {
  int64_t N = X.size(0), D = X.size(2);
  auto f32 = pre_in.options();
  Tensor gX = at::empty_like(X), gm = at::empty({N, C}, f32), gpi = at::empty({N, S}, f32);
  int64_t blocks = (N + LANES - 1) / LANES, T = at::get_num_threads();
  Tensor gw = at::zeros({T, D}, f32), gz = at::zeros({T, 2*C}, f32);  // per thread: d(scaled m), d(base)
  const Row *Xp = rows<Row>(X), *gxp = rows<Row>(gx); Row* gXp = rows_out<Row>(gX);
  const float *mp = m.data_ptr<float>(), *rp = r.data_ptr<float>(), *pi = pre_in.data_ptr<float>(), *wp = w.data_ptr<float>(),
              *sc = scale.data_ptr<float>(), *bs = base.data_ptr<float>(), *gp = gpre.data_ptr<float>(),
              *gq = gpost.data_ptr<float>(), *gc = gcomb.data_ptr<float>();
  float *gmp = gm.data_ptr<float>(), *gpip = gpi.data_ptr<float>();
  at::parallel_for(0, blocks, 4, [&](int64_t b0, int64_t b1) {
    int tid = at::get_thread_num();
    float *gwt = gw.data_ptr<float>() + tid*D, *gzt = gz.data_ptr<float>() + tid*2*C;
    std::vector<float> c(D), gn(D), hist(size_t(2*iters)*16*LANES), inv(size_t(2*iters)*4*LANES);
    for (int64_t b = b0; b < b1; b++) {
      int n = std::min<int64_t>(LANES, N - b*LANES);
      float z[16][LANES] = {}, g[16][LANES] = {};
      for (int t = 0; t < n; t++) {
        int64_t row = b*LANES + t;
        for (int i = 0; i < 16; i++) {
          z[i][t] = mp[row*C+8+i]*rp[row]*sc[2] + bs[8+i];
          g[i][t] = gc[row*16+i];
        }
      }
      sinkhorn_forward(&z[0][0], nullptr, iters, hc_eps, hist.data(), inv.data());
      sinkhorn_backward(hist.data(), inv.data(), g, iters);
      for (int t = 0; t < n; t++) {
        int64_t row = b*LANES + t;
        const Row *xr = Xp + row*S*D, *gr = gxp + row*D; Row* o = gXp + row*S*D;
        float rr = rp[row], gr_total = 0;
        for (int i = 0; i < C; i++) {
          float s = sc[group_of(i)], mm = mp[row*C+i], v = mm*rr*s + bs[i], dz;
          if (i < 8) { float sg = 1.f/(1.f+std::exp(-v)); dz = (i < 4 ? gp[row*S+i] : 2.f*gq[row*S+i-4])*sg*(1.f-sg); }
          else dz = g[i-8][t];
          gzt[i] += dz*mm*rr; gzt[C+i] += dz;
          gmp[row*C+i] = dz*s*rr; gr_total += dz*s*mm;
        }
        float kx = -gr_total*rr*rr*rr/(S*D);
        float p[S]; for (int s = 0; s < S; s++) p[s] = pi[row*S+s];
        float cs = 0;
        for (int64_t d = 0; d < D; d++) {
          float v = p[0]*up(xr[d]) + p[1]*up(xr[D+d]) + p[2]*up(xr[2*D+d]) + p[3]*up(xr[3*D+d]);
          c[d] = v; cs += v*v;
        }
        float cr = 1.f/std::sqrt(cs/D + float(eps)), dot = 0;
        for (int64_t d = 0; d < D; d++) { float v = up(gr[d]); gwt[d] += v*c[d]*cr; gn[d] = v*wp[d]; dot += gn[d]*c[d]; }
        float k = dot*cr*cr/D;
        for (int64_t d = 0; d < D; d++) gn[d] = cr*(gn[d] - c[d]*k);
        for (int s = 0; s < S; s++) {
          float a = 0;
          for (int64_t d = 0; d < D; d++) { float v = up(xr[s*D+d]); a += v*gn[d]; o[s*D+d] = to<Row>(p[s]*gn[d] + kx*v); }
          gpip[row*S+s] = a;
        }
      }
    }
  });
  return {gX, gm, gpi, gw.sum(0), gz.sum(0)};
}

// ---- X'[k] = post[k] y + sum_j comb[j,k] X[j] ------------------------------------------------------
template <class Row> static Tensor expand_forward(Tensor X, Tensor y, Tensor post, Tensor comb) {
  int64_t N = X.size(0), D = X.size(2);
  Tensor out = at::empty_like(X);
  const Row *Xp = rows<Row>(X), *yp = rows<Row>(y); Row* op = rows_out<Row>(out);
  const float *pp = post.data_ptr<float>(), *cp = comb.data_ptr<float>();
  at::parallel_for(0, N, 64, [&](int64_t a, int64_t b) {
    for (int64_t n = a; n < b; n++) {
      const Row *x = Xp + n*S*D, *yy = yp + n*D;
      for (int k = 0; k < S; k++) {
        float q = pp[n*S+k], c0 = cp[n*16+k], c1 = cp[n*16+4+k], c2 = cp[n*16+8+k], c3 = cp[n*16+12+k];
        Row* o = op + (n*S+k)*D;
        for (int64_t d = 0; d < D; d++)
          o[d] = to<Row>(q*up(yy[d]) + c0*up(x[d]) + c1*up(x[D+d]) + c2*up(x[2*D+d]) + c3*up(x[3*D+d]));
      }
    }
  });
  return out;
}

template <class Row> static std::vector<Tensor> expand_backward(Tensor X, Tensor y, Tensor post, Tensor comb, Tensor g) {
  int64_t N = X.size(0), D = X.size(2);
  Tensor gX = at::empty_like(X), gy = at::empty_like(y), gpost = at::empty_like(post), gcomb = at::empty_like(comb);
  const Row *Xp = rows<Row>(X), *yp = rows<Row>(y), *gp = rows<Row>(g); Row *gXp = rows_out<Row>(gX), *gyp = rows_out<Row>(gy);
  const float *pp = post.data_ptr<float>(), *cp = comb.data_ptr<float>();
  float *gq = gpost.data_ptr<float>(), *gc = gcomb.data_ptr<float>();
  at::parallel_for(0, N, 64, [&](int64_t a, int64_t b) {
    std::vector<float> G(S*D);
    for (int64_t n = a; n < b; n++) {
      const Row *x = Xp + n*S*D, *yy = yp + n*D, *gg = gp + n*S*D;
      const float *p = pp + n*S, *c = cp + n*16;
      for (int64_t i = 0; i < S*D; i++) G[i] = up(gg[i]);
      float s0 = 0, s1 = 0, s2 = 0, s3 = 0;
      for (int64_t d = 0; d < D; d++) {
        float v = up(yy[d]);
        gyp[n*D+d] = to<Row>(p[0]*G[d] + p[1]*G[D+d] + p[2]*G[2*D+d] + p[3]*G[3*D+d]);
        s0 += v*G[d]; s1 += v*G[D+d]; s2 += v*G[2*D+d]; s3 += v*G[3*D+d];
      }
      gq[n*S] = s0; gq[n*S+1] = s1; gq[n*S+2] = s2; gq[n*S+3] = s3;
      for (int j = 0; j < S; j++) {
        float t0 = 0, t1 = 0, t2 = 0, t3 = 0;
        for (int64_t d = 0; d < D; d++) {
          float v = up(x[j*D+d]);
          gXp[(n*S+j)*D+d] = to<Row>(c[j*4]*G[d] + c[j*4+1]*G[D+d] + c[j*4+2]*G[2*D+d] + c[j*4+3]*G[3*D+d]);
          t0 += v*G[d]; t1 += v*G[D+d]; t2 += v*G[2*D+d]; t3 += v*G[3*D+d];
        }
        gc[n*16+j*4] = t0; gc[n*16+j*4+1] = t1; gc[n*16+j*4+2] = t2; gc[n*16+j*4+3] = t3;
      }
    }
  });
  return {gX, gy, gpost, gcomb};
}

// ---- SwiGLU: gu [N,2F] (gate, up) -> silu(min(g,L)) * clamp(u,-L,L) * weight[n] -----------------------
template <class Row> static Tensor swiglu_forward(Tensor gu, Tensor weight, double limit) {
  int64_t N = gu.size(0), F = gu.size(1)/2; float L = limit;
  Tensor out = at::empty({N, F}, gu.options());
  const Row* p = rows<Row>(gu); Row* o = rows_out<Row>(out);
  const float* w = weight.numel() ? weight.data_ptr<float>() : nullptr;
  at::parallel_for(0, N, 64, [&](int64_t a, int64_t b) {
    for (int64_t n = a; n < b; n++) {
      float s = w ? w[n] : 1.f;
      for (int64_t f = 0; f < F; f++) {
        float g = std::min(up(p[n*2*F+f]), L), u = std::min(std::max(up(p[n*2*F+F+f]), -L), L);
        o[n*F+f] = to<Row>(s*u*g/(1.f+std::exp(-g)));
      }
    }
  });
  return out;
}

template <class Row> static std::vector<Tensor> swiglu_backward(Tensor gu, Tensor weight, Tensor go, double limit) {
  int64_t N = gu.size(0), F = gu.size(1)/2; float L = limit;
  Tensor ggu = at::empty_like(gu), gw = at::empty_like(weight);
  const Row *p = rows<Row>(gu), *q = rows<Row>(go); Row* o = rows_out<Row>(ggu);
  const float* w = weight.numel() ? weight.data_ptr<float>() : nullptr;
  float* gwp = w ? gw.data_ptr<float>() : nullptr;
  at::parallel_for(0, N, 64, [&](int64_t a, int64_t b) {
    for (int64_t n = a; n < b; n++) {
      float s = w ? w[n] : 1.f, acc = 0;
      for (int64_t f = 0; f < F; f++) {
        float g0 = up(p[n*2*F+f]), u0 = up(p[n*2*F+F+f]), gr = up(q[n*F+f]);
        float g = std::min(g0, L), u = std::min(std::max(u0, -L), L);
        float sg = 1.f/(1.f+std::exp(-g)), sl = g*sg;
        acc += gr*sl*u; gr *= s;
        o[n*2*F+f] = to<Row>(g0 < L ? gr*u*(sg + sl*(1.f-sg)) : 0.f);
        o[n*2*F+F+f] = to<Row>(u0 > -L && u0 < L ? gr*sl : 0.f);
      }
      if (w) gwp[n] = acc;
    }
  });
  return {ggu, gw};
}

// ---- softmax over (window logits, compressed logits, sink), in place ---------------------------------
// lw [B,T,H,Kw], lc [B,T,H,M] (M may be 0); mask_w [T,Kw] u8; mask_c [Bm,T,M] u8 (Bm 1 or B); sink [H]
template <class Row> static Tensor softmax_forward(Tensor lw, Tensor lc, Tensor mask_w, Tensor mask_c, Tensor sink, double scale) {
  int64_t B = lw.size(0), T = lw.size(1), H = lw.size(2), K = lw.size(3), M = lc.numel() ? lc.size(3) : 0;
  int64_t Bm = M ? mask_c.size(0) : 1;
  Tensor ps = at::empty({B, T, H}, sink.options());
  Row *wp = rows_out<Row>(lw), *cp = M ? rows_out<Row>(lc) : nullptr;
  const uint8_t *mw = mask_w.data_ptr<uint8_t>(), *mc = M ? mask_c.data_ptr<uint8_t>() : nullptr;
  const float* sk = sink.data_ptr<float>(); float* psp = ps.data_ptr<float>(); float sc = scale;
  at::parallel_for(0, B*T, 16, [&](int64_t a, int64_t b) {
    std::vector<float> buffer(K+M), keep(K+M);
    for (int64_t bt = a; bt < b; bt++) {
      int64_t t = bt % T, bb = Bm == 1 ? 0 : bt / T;
      const uint8_t *kw = mw + t*K, *kc = M ? mc + (bb*T+t)*M : nullptr;
      for (int64_t i = 0; i < K; i++) keep[i] = kw[i] ? 1.f : 0.f;
      for (int64_t i = 0; i < M; i++) keep[K+i] = kc[i] ? 1.f : 0.f;
      for (int64_t h = 0; h < H; h++) {
        Row *x = wp + (bt*H+h)*K, *y = M ? cp + (bt*H+h)*M : nullptr;
        float* v = buffer.data();
        for (int64_t i = 0; i < K; i++) v[i] = up(x[i])*sc;
        for (int64_t i = 0; i < M; i++) v[K+i] = up(y[i])*sc;
        float mx = sk[h];
        for (int64_t i = 0; i < K+M; i++) { float a = keep[i] > 0 ? v[i] : -1e30f; mx = a > mx ? a : mx; }
        float den = std::exp(sk[h]-mx), s0 = den;
        // Clamped: far out of range the vector exp falls back to scalar code.
        for (int64_t i = 0; i < K+M; i++) { v[i] = std::exp(std::min(std::max(v[i]-mx, -80.f), 0.f))*keep[i]; den += v[i]; }
        float inv = 1.f/den; psp[bt*H+h] = s0*inv;
        for (int64_t i = 0; i < K; i++) x[i] = to<Row>(v[i]*inv);
        for (int64_t i = 0; i < M; i++) y[i] = to<Row>(v[K+i]*inv);
      }
    }
  });
  return ps;
}

template <class Row> static Tensor softmax_backward(Tensor pw, Tensor pc, Tensor ps, Tensor gw, Tensor gc, double scale) {  // gw, gc in place
  int64_t B = pw.size(0), T = pw.size(1), H = pw.size(2), K = pw.size(3), M = pc.numel() ? pc.size(3) : 0;
  Tensor gs = at::empty_like(ps);
  const Row *p = rows<Row>(pw), *q = M ? rows<Row>(pc) : nullptr;
  Row *g = rows_out<Row>(gw), *h = M ? rows_out<Row>(gc) : nullptr;
  const float* psp = ps.data_ptr<float>(); float* gsp = gs.data_ptr<float>(); float sc = scale;
  at::parallel_for(0, B*T*H, 64, [&](int64_t a, int64_t b) {
    for (int64_t r = a; r < b; r++) {
      float d = 0;
      for (int64_t i = 0; i < K; i++) d += up(p[r*K+i])*up(g[r*K+i]);
      for (int64_t i = 0; i < M; i++) d += up(q[r*M+i])*up(h[r*M+i]);
      for (int64_t i = 0; i < K; i++) g[r*K+i] = to<Row>(sc*up(p[r*K+i])*(up(g[r*K+i])-d));
      for (int64_t i = 0; i < M; i++) h[r*M+i] = to<Row>(sc*up(q[r*M+i])*(up(h[r*M+i])-d));
      gsp[r] = -psp[r]*d;
    }
  });
  return gs.flatten(0, 1).sum(0);
}

// ---- cross entropy: logits [N,V] become the gradient (p - onehot) * weight[n] in place; losses returned ------
template <class Row> static Tensor cross_entropy(Tensor logits, Tensor target, Tensor weight) {
  int64_t N = logits.size(0), V = logits.size(1);
  Tensor loss = at::empty({N}, weight.options());
  Row* p = rows_out<Row>(logits); const int64_t* y = target.data_ptr<int64_t>();
  const float* w = weight.data_ptr<float>(); float* l = loss.data_ptr<float>();
  at::parallel_for(0, N, 16, [&](int64_t a, int64_t b) {
    std::vector<float> v(V);
    for (int64_t n = a; n < b; n++) {
      Row* x = p + n*V; float mx = -1e30f, den = 0;
      for (int64_t i = 0; i < V; i++) { v[i] = up(x[i]); mx = std::max(mx, v[i]); }
      float at = v[y[n]];
      for (int64_t i = 0; i < V; i++) { v[i] = std::exp(v[i]-mx); den += v[i]; }
      l[n] = std::log(den) + mx - at;
      float k = w[n]/den; v[y[n]] -= den;
      for (int64_t i = 0; i < V; i++) x[i] = to<Row>(v[i]*k);
    }
  });
  return loss;
}

// ---- RoPE: x [B,T,H,d], adjacent pairs of the last rd channels turned by sign * angle [T, rd/2] ---------------------
template <class Row> static Tensor rope(Tensor x, Tensor cos, Tensor sin, double sign) {
  int64_t B = x.size(0), T = x.size(1), H = x.size(2), d = x.size(3), half = cos.size(1);
  Tensor out = at::empty_like(x);
  const Row* p = rows<Row>(x); Row* o = rows_out<Row>(out);
  const float *c = cos.data_ptr<float>(), *s = sin.data_ptr<float>(); float sg = sign;
  at::parallel_for(0, B*T, 64, [&](int64_t a, int64_t b) {
    for (int64_t bt = a; bt < b; bt++) {
      const float *cc = c + (bt%T)*half, *ss = s + (bt%T)*half;
      for (int64_t h = 0; h < H; h++) {
        const Row* q = p + (bt*H+h)*d; Row* r = o + (bt*H+h)*d;
        std::memcpy(r, q, (d-2*half)*sizeof(Row));
        q += d-2*half; r += d-2*half;
        for (int64_t i = 0; i < half; i++) {
          float re = up(q[2*i]), im = up(q[2*i+1]), t = sg*ss[i];
          r[2*i] = to<Row>(re*cc[i]-im*t); r[2*i+1] = to<Row>(re*t+im*cc[i]);
        }
      }
    }
  });
  return out;
}

// bfloat16 or float32 rows, by the first argument.
template <class R, class... A> static auto pick(R (*half)(Tensor, A...), R (*full)(Tensor, A...)) {
  return [=](Tensor x, A... a) -> R {
    TORCH_CHECK(x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kFloat, "rows are bfloat16 or float32");
    return x.scalar_type() == at::kBFloat16 ? half(x, a...) : full(x, a...);
  };
}
#define BOTH(name) m.def(#name, pick(&name<uint16_t>, &name<float>))

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  BOTH(site_forward); BOTH(site_backward);
  BOTH(expand_forward); BOTH(expand_backward);
  BOTH(swiglu_forward); BOTH(swiglu_backward);
  BOTH(rope);
  BOTH(cross_entropy);
  BOTH(softmax_forward); BOTH(softmax_backward);
}

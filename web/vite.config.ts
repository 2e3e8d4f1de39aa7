import { defineConfig } from "vite";

const server = process.env["MOSHI_SERVER"] ?? "http://localhost:8998";

// Names without hashes, so that the built page in the package changes only where the sources did.
export default defineConfig({
  base: "./",
  build: {
    target: ["chrome110", "firefox115", "safari16.4"],
    outDir: "../python/moshi_mlx/web/static",
    emptyOutDir: true,
    assetsInlineLimit: 0,
    modulePreload: { polyfill: false },
    rollupOptions: {
      output: {
        entryFileNames: "page.js",
        chunkFileNames: "[name].js",
        assetFileNames: "[name][extname]",
      },
    },
  },
  worker: {
    format: "es",
    rollupOptions: { output: { entryFileNames: "[name].js" } },
  },
  server: { proxy: { "/api": { target: server, ws: true, changeOrigin: true } } },
});
